"""Times training and prediction on the devices of this machine: ``deberta-jax bench``."""
