"""The bot at work: its processes, durable workflows and queues, and what may stop them."""
