"""Training of restorers in two stages: a dictionary of clean faces, then the restorer that draws on it."""
