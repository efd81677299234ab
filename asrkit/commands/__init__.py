"""Commands with options and tables of their own; `asrkit.cli` hangs them into the command line."""
