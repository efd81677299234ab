"""One file per method, its config beside it."""
