"""`portllm.yaml` in a patch's own repo: what it says, finding it, obeying it, proposing it."""
