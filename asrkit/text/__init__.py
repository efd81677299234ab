"""Text: its spelling, the units that a head predicts, and error rates."""
