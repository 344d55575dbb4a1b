"""What a base is: where its tensors lie, how Transformers reads them, what changed between two."""
