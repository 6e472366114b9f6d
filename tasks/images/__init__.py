"""What pictures are: their format, their colours, what they look like, and the marks and thumbnails made of them."""
