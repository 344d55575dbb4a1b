"""What is shown: the model card of a port and the lock file that says how to make it again."""
