"""What pictures are: their format, colours and EXIF, what they look like, and the mark of those that are restored."""
