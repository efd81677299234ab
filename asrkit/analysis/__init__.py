"""What trained models and runs look like: similarity, curves, reports."""
