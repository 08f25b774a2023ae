"""Training: experiments, the step, the loop, checkpoints, and the jobs built of them."""
