"""From files to batches: tables, labels, token features, and the plan of which example is in which batch."""
