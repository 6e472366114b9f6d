"""What pictures are: their format, their colours, what they look like, and the mark of those that are restored."""
