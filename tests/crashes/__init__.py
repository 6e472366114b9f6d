"""Nights that are killed at random moments, and what must be left of them."""
