"""What is known: patches, bases, releases, subscriptions and ports.

`models` draws the tables, `database` opens and migrates the file, `records` writes, and `status`
derives the one sentence that every subscription owes its owner.
"""
