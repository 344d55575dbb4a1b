"""What a patch is: an adapter of any kind, read from its config and headers, as updates."""
