"""What is owed to those whose faces these are: erasure, retention, encryption."""
