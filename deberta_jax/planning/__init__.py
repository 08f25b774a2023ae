"""Estimates what a run needs and costs, from the program that the compiler makes of it; no device is needed."""
