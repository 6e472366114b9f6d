"""Words for people: how many of what."""


def count(number: int, one: str, several: str | None = None) -> str:
    """Say how many: '1 face', '1,204 faces'."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
