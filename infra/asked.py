"""Errors that say that something was asked wrongly: a value, a question, a combination that does not fit.

All others mean that it was asked rightly and did not work: what it names is not there, say. Commands tell them apart by their
exit code (`flows.cli.problems`).
"""


class AskedWrongly(ValueError):
    """What was asked has to change; the message says how."""
