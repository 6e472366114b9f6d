"""Labels that do not say what they should are refused by line; nothing is guessed."""

from pathlib import Path

import numpy as np
import pytest

from models.vocabulary import AGE, ATTRIBUTES, EXPRESSION
from tasks.evaluation.labels import Table, UnusableLabels, classes_of, labelled_attributes, numbers, read_table


def table(folder: Path, content: str) -> Table:
    (folder / "labels.csv").write_text(content, encoding="utf-8")
    return read_table(folder / "labels.csv")


def test_classes_numbers_and_yes_or_no_are_read_by_their_names(tmp_path: Path) -> None:
    read = table(
        tmp_path,
        "image,expression,age,eyeglasses,photographer\na.jpg,happiness,41.5,1,x\nb.jpg,,?,-1,y\nc.jpg,anger,7,yes,z\n",
    )
    assert {attribute.name for attribute in labelled_attributes(read)} == {"expression", "age", "eyeglasses"}
    np.testing.assert_array_equal(
        numbers(read, EXPRESSION), [EXPRESSION.classes.index("happiness"), np.nan, EXPRESSION.classes.index("anger")]
    )
    np.testing.assert_array_equal(numbers(read, AGE), [41.5, np.nan, 7])
    np.testing.assert_array_equal(numbers(read, ATTRIBUTES["eyeglasses"]), [1, 0, 1])
    assert classes_of(ATTRIBUTES["eyeglasses"]) == ("no", "yes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("photo,expression\na.jpg,anger\n", "line 1: no column image"),
        ("image,expression\n", "no labels, only a header"),
        ("image,expression\n,anger\n", "line 2: no image is named"),
        ("image,expression\na.jpg,anger\na.jpg,fear\n", "line 3: 'a.jpg' is in line 2 already"),
        ("image,mood\na.jpg,good\n", "none of its columns .mood. is an attribute; .* expression, age"),
        ("image,parsing\na.jpg,x\n", "parsing cannot be labelled by a cell"),
        ("image,expression\na.jpg,anger\nb.jpg,contempt\n", "line 3: 'contempt' is no class of expression; classes are "
         "anger, .*--leave-out contempt"),
        ("image,age\na.jpg,old\n", "line 2: age is 'old'; it must be a number of years"),
        ("image,age\na.jpg,nan\n", "line 2: age is 'nan'"),
        ("image,eyeglasses\na.jpg,2\n", "line 2: eyeglasses is '2'; it must be 1 or 0"),
        ("image,expression\na.jpg,\n", "no picture has a label of expression"),
    ],
)  # fmt: skip
def test_labels_that_say_nothing_clear_are_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    def read() -> None:
        found = table(tmp_path, content)
        for attribute in labelled_attributes(found):
            numbers(found, attribute)

    with pytest.raises(UnusableLabels, match=message):
        read()


def test_classes_left_out_are_as_if_not_labelled(tmp_path: Path) -> None:
    read = table(tmp_path, "image,expression\na.jpg,anger\nb.jpg,contempt\n")
    assert np.isnan(numbers(read, EXPRESSION, ["contempt"])).tolist() == [False, True]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"image,age\n\xff\xfe,3\n")
    with pytest.raises(UnusableLabels, match="not UTF-8 text"):
        read_table(tmp_path / "labels.csv")
