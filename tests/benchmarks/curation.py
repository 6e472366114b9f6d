"""What curation finds among labels that were spoiled on purpose: `python -m tests.benchmarks.curation [OUT]`.

LFW's shared crops (identity by name). Shares of the pictures are given to another person at random, a tenth of the people with
two pictures or more are split in two, and 2% of the pictures are added again, smaller and saved worse, half of them as somebody
else. A picture can be judged where its new identity has a majority of one person: of two that differ, nobody can tell which is
wrong. Found are pictures that do not belong, with precision, recall among all spoiled ones and among those that can be judged,
and how often those said to belong elsewhere are sent to the right person; doubtful ones, with the share of spoiled ones;
identities said to be one person, with precision, recall of the halves, and of halves of three pictures and more. LFW itself has
wrong labels. With OUT, the page of the run with 10% is written there.
"""

import io
import sys
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.settings import load_settings
from models.spec import Role
from tasks.curation.labelled import Studied, study_pictures
from tasks.curation.proposals import Round, Verdict
from tasks.curation.report import Curated, curate_studied, write
from tasks.recipe import version_for
from tasks.training.collection import Labelled
from tests.reference import shared

SHARES = (0.0, 0.1, 0.2)
SHOWN = 0.1
SPLIT, COPIED = 0.1, 0.02
SEED = 2026
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Spoiled:
    """Labels with known mistakes: what pictures are said to show, those moved, and {name of a half: person}."""

    said: tuple[str, ...]
    moved: frozenset[int]
    halves: dict[str, str]


def with_copies(out: Path) -> tuple[Labelled, dict[str, str]]:
    """Write LFW's crops and some copies into a tar; returns them with their true labels, and {copy: original}."""
    random, copies = np.random.default_rng(SEED), dict[str, str]()
    with tarfile.open(shared("data/lfw_grey_128.tar")) as source, tarfile.open(out, "w") as target:
        members = [member for member in source if member.isfile()]
        chosen = set(random.permutation(len(members))[: int(COPIED * len(members))].tolist())
        for number, member in enumerate(members):
            file = source.extractfile(member)
            assert file is not None
            data = file.read()
            _add(target, member.name, data)
            if number in chosen:
                worse, name = io.BytesIO(), f"copies/{member.name}"
                Image.open(io.BytesIO(data)).resize((112, 112)).save(worse, "jpeg", quality=60)
                _add(target, name, worse.getvalue())
                copies[name] = member.name
    names = sorted([member.name for member in members] + list(copies))
    return Labelled(out, tuple(names), tuple(person(name) for name in names), "spoiled"), copies


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def person(name: str) -> str:
    """Who a crop of LFW shows, by its name."""
    return Path(name).name.rpartition("_")[0]


def spoil(names: tuple[str, ...], share: float) -> Spoiled:
    """Make mistakes, always the same ones."""
    random = np.random.default_rng(SEED)
    said = [person(name) for name in names]
    people = sorted(set(said))
    moved = set(random.permutation(len(names))[: int(share * len(names))].tolist())
    moved |= {row for row, name in enumerate(names) if name.startswith("copies/") and random.random() < 0.5}
    for row in sorted(moved):
        others = [people[n] for n in random.integers(0, len(people), 2)]
        said[row] = next(other for other in others if other != said[row])
    rows: dict[str, list[int]] = {}
    for row, who in enumerate(said):
        rows.setdefault(who, []).append(row)
    several = sorted(who for who, theirs in rows.items() if len(theirs) > 1)
    halves = {}
    for who in random.permutation(several)[: int(SPLIT * len(several))].tolist():
        for row in random.permutation(rows[who])[: len(rows[who]) // 2].tolist():
            said[row] = halves[who] = f"{who} (2)"
    return Spoiled(tuple(said), frozenset(moved), {half: who for who, half in halves.items()})


def judged(curated: Curated, spoiled: Spoiled, found: Round) -> str:
    """One row of the table."""
    strict = [f for f in found.findings if f.verdict is not Verdict.DOUBTFUL]
    doubtful = [f for f in found.findings if f.verdict is Verdict.DOUBTFUL]
    hits = {f.row for f in strict} & spoiled.moved
    decidable = spoiled.moved & _decidable(curated)
    elsewhere = [f for f in strict if f.verdict is Verdict.ELSEWHERE and f.row in spoiled.moved]
    names = curated.studied.names
    home = [f for f in elsewhere if person(names[f.like]) == person(names[f.row])]
    right = [m for m in found.merges if person(names[m.row_a]) == person(names[m.row_b])]
    merges = {frozenset((curated.people[m.label_a], curated.people[m.label_b])) for m in found.merges}
    labels = dict(zip(curated.people, np.bincount(curated.labels).tolist(), strict=True))
    halves = {frozenset(pair) for pair in spoiled.halves.items() if set(pair) <= labels.keys()}
    large = {pair for pair in halves if min(labels[name] for name in pair) > 2}
    return (
        f"{len(strict):5} {_share(len(hits), len(strict))} {_share(len(hits), len(spoiled.moved))} "
        f"{_share(len(hits & decidable), len(decidable))} {_share(len(home), len(elsewhere))} "
        f"{len(doubtful):5} {_share(sum(f.row in spoiled.moved for f in doubtful), len(doubtful))} "
        f"{len(merges):5} {_share(len(right), len(merges))} {_share(len(merges & halves), len(halves))} "
        f"{_share(len(merges & large), len(large))}"
    )


def _decidable(curated: Curated) -> frozenset[int]:
    """The pictures in whose identity one person, by two pictures at least, is more often than any other."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(curated.labels):
        rows.setdefault(label, []).append(row)
    found: set[int] = set()
    for theirs in rows.values():
        (_, most), *others = Counter(person(curated.studied.names[row]) for row in theirs).most_common(2)
        if most > 1 and all(count < most for _, count in others):
            found.update(theirs)
    return frozenset(found)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:6.3f}" if whole else "     -"


def study(folder: Path) -> tuple[Studied, dict[str, str]]:
    """Embed all pictures once."""
    settings = load_settings()
    labelled, copies = with_copies(folder / "pictures.tar")
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    embedder = version_for(Role.EMBED, settings.embed_model, settings)
    return study_pictures(settings, detector, embedder, labelled), copies


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        studied, copies = study(Path(folder))
    print(
        f"{len(studied.names)} pictures, {len(set(map(person, studied.names)))} people, "
        f"{len(studied.without_face)} without a face"
    )
    print("share round found   prec recall judged   home  doubt  wrong  one p.  true recall  large")
    for share in SHARES:
        spoiled = spoil(studied.names, share)
        labelled = Studied(**{**vars(studied), "identities": spoiled.said})
        start = time.perf_counter()
        curated = curate_studied(labelled)
        seconds = time.perf_counter() - start
        for number, found in enumerate(curated.rounds, start=1):
            print(f"{share:5} {number:5} {judged(curated, spoiled, found)}  {'head' if found.statistics.head else ''}")
        there = {copy: original for copy, original in copies.items() if {copy, original} <= set(studied.names)}
        pairs = {frozenset((studied.names[c.kept], studied.names[c.copy])) for c in curated.copies}
        hits = pairs & {frozenset(pair) for pair in there.items()}
        print(
            f"      copies: {len(pairs)} found, {len(hits)} of {len(there)} that were added; "
            f"stable: {curated.stable}; {seconds:.1f} s"
        )
        if share == SHOWN and len(sys.argv) > 1:
            Path(sys.argv[1]).mkdir(parents=True)
            write(curated, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
