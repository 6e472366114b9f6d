"""Which embedding version answers, which is to follow, and who is at work on it."""
