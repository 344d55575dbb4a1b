"""A Hub on your disk, spoken to by the stock huggingface_hub client through HF_ENDPOINT."""
