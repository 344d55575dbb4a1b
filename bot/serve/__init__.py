"""`portllm serve`: takes the Hub's events, and shows how the bot is."""
