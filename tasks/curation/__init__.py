"""Labelled collections for training: which pictures do not belong, which identities are one person."""
