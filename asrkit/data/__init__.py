"""Corpora to manifests and index, epoch plan, streams of batches."""
