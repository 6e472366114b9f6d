"""The nearest faces: vectors, and the indexes that follow them inside and outside of the database."""
