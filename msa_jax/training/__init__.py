"""The training loop: stages, objective, optimiser, metrics."""
