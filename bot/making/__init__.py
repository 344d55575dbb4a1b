"""A port up to its verdict: planned, made in the sandbox, judged."""
