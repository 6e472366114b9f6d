"""Custody: what is erased, expires, is encrypted, is shown elsewhere, and who looked."""
