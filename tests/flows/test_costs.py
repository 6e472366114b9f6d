"""What one more photograph costs, in things that can be counted: the same on every machine, however busy it is.

A bound that has become too loose, because something was made cheaper, is lowered; one that is passed wants a reason.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import Engine, event

from infra import weights
from infra.settings import Settings
from infra.storage.folder import Folder
from tasks import decode
from tasks.prepare import GROUP
from tests.flows.test_night import add, run
from tests.portraits import jpeg, portrait

# For one photograph of 200 x 200 pixels with one face, among as many as are detected together.
PER_PHOTOGRAPH = {
    "reads": 1,
    "decodes": 1,
    "objects written": 1,
    "model loads": 0,
    "SQL statements": 0.25,
    "calls of Python functions": 1750,
    "calls of native functions": 2000,
}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count what happens within the context."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    def statement(*_: object) -> None:
        counts["SQL statements"] += 1

    def call(frame: FrameType, what: str, _: object) -> None:
        counts["calls of Python functions"] += what == "call"
        counts["calls of native functions"] += what == "c_call"

    event.listen(Engine, "before_cursor_execute", statement)
    with monkeypatch.context() as patched:
        for name, owner, attribute in (
            ("reads", Folder, "read"),
            ("objects written", Folder, "put"),
            ("decodes", decode, "_decode"),
            ("model loads", weights, "load"),
        ):
            patched.setattr(owner, attribute, counting(name, getattr(owner, attribute)))
        before = sys.getprofile()
        try:
            threading.setprofile(call)  # of threads that begin from now on
            sys.setprofile(call)
            yield counts
        finally:
            sys.setprofile(before)
            threading.setprofile(None)
            event.remove(Engine, "before_cursor_execute", statement)


@pytest.mark.slow
def test_one_more_photograph_costs_no_more_than_it_did(
    tmp_path: Path, weights_dir: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = []
    for groups in (1, 1, 2):  # the first warms up what is loaded once in a process
        place = tmp_path / f"{len(costs)}"
        (place / "photos").mkdir(parents=True)
        for n in range(groups * GROUP):
            (place / "photos" / f"{n:03}.jpg").write_bytes(jpeg(portrait(200), quality=95 - n))
        settings = Settings(
            home=place / "home", weights=weights_dir, tracking_uri=tracking_uri, engine="inline", restore_model=""
        )
        add(settings, place / "photos")
        with counted(monkeypatch) as counts:
            state = run(settings)
        assert state.tally.faces == groups * GROUP
        costs.append(counts)
    more = {name: (costs[2][name] - costs[1][name]) / GROUP for name in PER_PHOTOGRAPH}
    assert {name: cost for name, cost in more.items() if cost > PER_PHOTOGRAPH[name]} == {}
    assert costs[1]["model loads"] == costs[2]["model loads"]
