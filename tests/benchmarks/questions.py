"""How long answers take, by the size of the catalog: questions, walls, people, counts, the walk of an archive. SQLite.

    python -m tests.benchmarks.questions [COUNT ...]        catalogs of so many faces, 10 and 100 thousand by default

The faces are tests.crowd's: a photograph each, ten of each person, one in a hundred in a collection `small`, a third smiling,
one surprised, ages from 0 to 79. Pages are asked for once to warm up, then three times: the median. What a page costs should
not depend on the number of faces; counts and archives are of all of them.
"""

import argparse
import tempfile
from collections.abc import Callable, Sized
from pathlib import Path
from statistics import median
from time import perf_counter

from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.exchange.portable import CARRIED, Selection
from infra.catalog.queries import views
from infra.catalog.queries.photographs import PhotoFilter, photographs
from infra.catalog.queries.portraits import people
from infra.catalog.queries.questions import ask, count_by
from tests.benchmarks import machine
from tests.benchmarks.progress import say
from tests.benchmarks.table import seconds
from tests.crowd import enter, fill, people_of, vectors

PAGE = 60
DIMENSION = 128
ROUNDS = 3

Action = Callable[[Session], Sized]


def _asked(question: str, late: bool = False) -> Action:
    def page(session: Session) -> Sized:
        after = session.connection().exec_driver_sql("SELECT max(id) * 9 / 10 FROM face").scalar() if late else 0
        return ask(session, question, PAGE, after or 0)

    return page


def _wall(wanted: PhotoFilter) -> Action:
    return lambda session: photographs(session, wanted, None, PAGE)


def _archived(session: Session) -> Sized:
    chosen = Selection(session, 1)
    return [None for carried in CARRIED for page in chosen.rows(carried) for _ in page]


PAGES: dict[str, Action] = {
    "`expression = happiness`, a third": _asked("expression = happiness"),
    "the same, nine tenths further on": _asked("expression = happiness", late=True),
    "`expression = surprise`, one face": _asked("expression = surprise"),
    "`age < 30`": _asked("age < 30"),
    "`age > 60 and expression = happiness`": _asked("age > 60 and expression = happiness"),
    "`collection = small`, one in a hundred": _asked("collection = small"),
    "`person = 12`, ten faces": _asked("person = 12"),
    "`taken < 1930`, none: no index over dates": _asked("taken < 1930"),
    "faces of one collection": lambda session: views.faces(session, "large", None, 0.0, PAGE),
    "the wall": _wall(PhotoFilter()),
    "the wall, smiling": _wall(PhotoFilter(label=("expression", "happiness"))),
    "the wall, surprised": _wall(PhotoFilter(label=("expression", "surprise"))),
    "people by the number of their faces": lambda session: people(session, 2, None, None, None, PAGE),
}
WALKS: dict[str, Action] = {
    "counted by expression": lambda session: count_by(session, "", "expression"),
    "counted by age, of good quality": lambda session: count_by(session, "quality > 0.5", "age"),
    "counted by person": lambda session: count_by(session, "", "person"),
    "all rows of an archive": _archived,
}


def main() -> None:
    """Measure every size, and print one table."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("counts", type=int, nargs="*", default=[10_000, 100_000])
    counts = parser.parse_args().counts
    measured = [measure(count) for count in counts]
    print(machine.sentence(machine.describe()))
    print("\n| " + " | ".join(["faces", *(f"{count:,}" for count in counts)]) + " |")
    print("| --- |" + " ---: |" * len(counts))
    for what in (*PAGES, *WALKS):
        print("| " + " | ".join([what, *(seconds(times[what]) for times in measured)]) + " |")


def measure(count: int) -> dict[str, float]:
    """Seconds that each answer takes in a catalog of so many faces."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(f"sqlite:///{Path(folder) / 'catalog.db'}")
        faces = vectors(count, DIMENSION)
        enter(catalog, faces[:0])
        with catalog.write() as session:
            fill(session, faces, people_of(count, DIMENSION) + 1)
        say(f"{count:,} faces entered")
        for what, action in (PAGES | WALKS).items():
            times = []
            for _ in range(ROUNDS + 1 if what in PAGES else 1):
                with catalog.read() as session:
                    start = perf_counter()
                    action(session)
                    times.append(perf_counter() - start)
            found[what] = median(times[1:] or times)
            say(f"{what}: {seconds(found[what])}")
        catalog.close()
    return found


if __name__ == "__main__":
    main()
