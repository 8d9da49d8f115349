"""Training: the settings, the optimisers, the batches, the loop, and what is kept of a run."""
