"""From scores to hypotheses."""
