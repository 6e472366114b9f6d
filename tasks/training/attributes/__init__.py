"""Training heads that read an attribute off a frozen recognition model's embeddings."""
