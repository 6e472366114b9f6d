"""The tables, the same for SQLite and PostgreSQL."""
