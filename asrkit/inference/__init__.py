"""Trained experiments at work: decoding sets, transcribing files."""
