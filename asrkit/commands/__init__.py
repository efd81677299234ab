"""Commands with many flags, one file each: `add` states them, `run` acts on them."""
