"""How many of what, as people say it."""

from infra.words import count


def test_one_is_one_and_others_are_several() -> None:
    assert [count(n, "face") for n in (0, 1, 2, 1204)] == ["0 faces", "1 face", "2 faces", "1,204 faces"]
    assert [count(n, "person", "people") for n in (1, 2)] == ["1 person", "2 people"]
