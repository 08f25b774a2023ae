"""Turns files into batches: tables, labels, token features, and the assignment of examples to batches."""
