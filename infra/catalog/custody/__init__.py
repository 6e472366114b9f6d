"""Custody: what is erased, expires, is shown elsewhere, and who looked."""
