"""Questions to the catalog, in words and as conditions that compose, and their answers as rows."""
