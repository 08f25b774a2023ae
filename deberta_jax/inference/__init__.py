"""Applies trained models: batched prediction over a data set, metrics, and pipelines."""
