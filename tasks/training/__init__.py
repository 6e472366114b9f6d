"""Training of recognition models: labelled faces, hold-out, objective, workers, and what becomes of the result."""
