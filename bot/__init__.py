"""What is done: watch -> classify -> plan -> port -> validate -> judge -> publish.

One module per step; `workflow` strings them together durably, `hub` is the only one that talks to
the Hub, and `sandbox` runs what reads strangers' files in a process that has no token.
"""
