"""`portllm serve`: pages and an API of the registry, the Hub's events, and what monitors ask."""
