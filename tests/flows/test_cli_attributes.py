"""`visage opinions` and attributes as the command line shows them."""

from infra.settings import Settings
from tests.command import visage


def test_one_opinion_alone_says_how_to_get_another(archive: Settings) -> None:
    ended = visage("opinions", "expression")
    assert ended.code == 0
    assert "VISAGE_DESCRIBE_MODELS" in ended.out
    assert visage("opinions", "expression", "--json").json == {"agreements": [], "disagreements": []}


def test_an_attribute_that_nobody_gives_is_named_beside_those_there_are(archive: Settings) -> None:
    ended = visage("opinions", "mood")
    assert (ended.code, ended.err.count("Traceback")) == (1, 0)
    assert "no face has mood; the catalog knows beyond_border, brightness, color" in ended.err


def test_opinions_of_one_collection_only(archive: Settings) -> None:
    assert visage("opinions", "yaw", "--collection", "elsewhere").code == 1
    assert visage("opinions", "yaw", "--collection", "archive").code == 0
