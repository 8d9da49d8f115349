"""Training: the settings, the optimizers, the batches, the loop, and the run with its folder."""
