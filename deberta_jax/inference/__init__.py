"""A model at work: batched forward passes over a data set, metrics, pipelines."""
