"""Rows that leave for another catalog, or come from one under other numbers."""
