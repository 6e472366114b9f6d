"""The benchmarks stay runnable and their table readable; what they measure is never tested."""

from importlib import import_module

import pytest

from tests.benchmarks import decoding
from tests.benchmarks.__main__ import NAMES
from tests.benchmarks.table import Row, markdown, megabytes, seconds, shares


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_measured_and_shown(name: str) -> None:
    benchmark = import_module(f"tests.benchmarks.{name}")
    assert callable(benchmark.measure)
    assert callable(benchmark.rows)


def test_a_small_measurement_makes_a_row_for_each_kind_of_file() -> None:
    rows = decoding.rows(decoding.measure(width=1500, height=1000, rounds=1))
    assert len(rows) == len(decoding.FILES)
    assert all("2 megapixels" in row.what and row.figure.endswith("s") for row in rows)


def test_table_has_a_line_per_row_and_the_same_cells_in_each() -> None:
    table = markdown([Row("start-up", "1.2 s", "cold | warm"), Row("memory", "300 MB")])
    assert table.splitlines() == [
        "| measured | figure | beside |",
        "| --- | --- | --- |",
        "| start-up | 1.2 s | cold \\| warm |",
        "| memory | 300 MB |  |",
    ]


@pytest.mark.parametrize(("value", "text"), [(0.0123, "12 ms"), (0.456, "0.46 s"), (1.23, "1.2 s"), (123.4, "123 s")])
def test_seconds_are_rounded_to_what_can_be_believed(value: float, text: str) -> None:
    assert seconds(value) == text


def test_megabytes_are_binary() -> None:
    assert megabytes(1500 * 2**20) == "1,500 MB"


def test_shares_are_ordered_and_leave_out_crumbs() -> None:
    assert shares({"align": 1.0, "detect": 3.0, "group": 0.001}, 4.0) == "detect 75%, align 25%"
