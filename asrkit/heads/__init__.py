"""Heads: losses on the encoder's output, and for supervised ones their hypotheses."""
