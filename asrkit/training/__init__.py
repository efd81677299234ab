"""The loop, optimiser, precision, distribution, checkpoints and logs."""
