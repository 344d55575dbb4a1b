"""What is new: follow rules, when each base is looked at, and what a release changed."""
