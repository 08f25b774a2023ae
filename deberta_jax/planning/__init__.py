"""What a run will need and cost, from the program that the compiler makes of it: no device takes part."""
