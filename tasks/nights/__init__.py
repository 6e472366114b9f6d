"""Around a night: when it is due, in which parts, how it went, who is told, and what is tried again."""
