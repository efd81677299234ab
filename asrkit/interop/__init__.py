"""Checkpoints in and out of other toolkits."""
