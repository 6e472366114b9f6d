"""What curation proposes, for people and programs: a page with pictures side by side, JSON, and lists as CSV."""

import base64
import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.html import templates
from tasks.curation.labelled import Studied
from tasks.curation.proposals import Finding, Merge, Round, curate, duplicates, settled, united
from tasks.nights.run_report import TEMPLATES
from tasks.training.collection import COLUMNS, UnusableLabels

SHOWN = 300  # proposals of a kind on the page; the JSON and the CSV have all
SAME_PICTURE_BITS = 3  # of 64
SAME_FACE = 0.97  # similarity of the faces in two copies of one picture; re-saved and shrunk ones stay above
FILES = ("report.html", "report.json", "proposals.csv", "cleaned.csv")


@dataclass(frozen=True)
class Copy:
    """Two pictures that are one: bits apart (0 with the same bytes), and which is left out of the cleaned list."""

    kept: int
    copy: int
    bits: int
    same_bytes: bool
    similarity: float


@dataclass(frozen=True)
class Curated:
    """All that is proposed. `labels` (N,) index `people`; `findings` and `merges` are of the last round, `stable`: the one
    before it proposed the same."""

    studied: Studied
    people: tuple[str, ...]
    labels: tuple[int, ...]
    rounds: tuple[Round, ...]
    copies: tuple[Copy, ...]
    stable: bool

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.rounds[-1].findings

    @property
    def merges(self) -> tuple[Merge, ...]:
        return self.rounds[-1].merges

    def cleaned(self) -> list[tuple[str, str]]:
        """Picture and identity, without what does not belong or is a copy; one person is called as their larger identity."""
        sizes = Counter(self.labels)
        family = united(self.merges, len(self.people)).tolist()
        called: dict[int, int] = {}
        for label in sorted(range(len(self.people)), key=lambda label: (-sizes[label], label)):
            called.setdefault(family[label], label)
        out = {finding.row for finding in self.findings} | {copy.copy for copy in self.copies}
        return [
            (name, self.people[called[family[label]]])
            for row, (name, label) in enumerate(zip(self.studied.names, self.labels, strict=True))
            if row not in out
        ]


def curate_studied(studied: Studied, seed: int = 0) -> Curated:
    """Look for wrong labels and copies.

    Raises:
        UnusableLabels: if all pictures are said to show one identity: there is nothing to compare it with.
    """
    found, labels = np.unique(studied.identities, return_inverse=True)
    people = tuple(found.tolist())
    if len(people) < 2:
        raise UnusableLabels(
            f"all pictures are of {people[0]!r}: what does not belong is told by comparing with others"
        )
    rounds = curate(studied.vectors, labels.astype(np.int64), seed)
    copies = tuple(_copies(studied, {finding.row for finding in rounds[-1].findings}))
    return Curated(studied, people, tuple(labels.tolist()), tuple(rounds), copies, settled(rounds))


def write(curated: Curated, folder: Path) -> tuple[Path, ...]:
    """Write page, JSON and both lists into a folder that is there, and return the files."""
    paths = tuple(folder / name for name in FILES)
    page, report, proposals, cleaned = paths
    report.write_text(json.dumps(as_json(curated), indent=1, ensure_ascii=False), encoding="utf-8")
    _csv(proposals, PROPOSAL_COLUMNS, _proposals(curated))
    _csv(cleaned, COLUMNS, curated.cleaned())
    page.write_text(as_html(curated), encoding="utf-8")
    return paths


PROPOSAL_COLUMNS = (
    "image",
    "identity",
    "proposal",
    "other_identity",
    "other_image",
    "own_similarity",
    "other_similarity",
)


def as_json(curated: Curated) -> dict[str, Any]:
    """Everything, with names instead of numbers."""
    return {
        "model": curated.studied.model,
        "pictures": len(curated.labels),
        "identities": len(curated.people),
        "without_face": curated.studied.without_face,
        "stable": curated.stable,
        "rounds": [
            {
                "statistics": asdict(found.statistics),
                "do_not_belong": Counter(finding.verdict.value for finding in found.findings),
                "one_person": len(found.merges),
            }
            for found in curated.rounds
        ],
        "proposals": [dict(zip(PROPOSAL_COLUMNS, row, strict=True)) for row in _proposals(curated)],
        "cleaned": len(curated.cleaned()),
    }


def as_html(curated: Curated) -> str:
    """One page without scripts or anything from elsewhere; the pictures are in it."""
    template = templates(TEMPLATES).get_template("curation.html")
    findings = sorted(curated.findings, key=lambda f: f.other - f.own, reverse=True)
    merges = sorted(curated.merges, key=lambda merge: -merge.similarity)
    return template.render(
        curated=curated,
        cleaned=len(curated.cleaned()),
        findings=[_shown_finding(curated, finding) for finding in findings[:SHOWN]],
        merges=[(merge, _shown(curated, merge.row_a), _shown(curated, merge.row_b)) for merge in merges[:SHOWN]],
        copies=[(copy, _shown(curated, copy.kept), _shown(curated, copy.copy)) for copy in curated.copies[:SHOWN]],
        most=SHOWN,
    )


def _shown_finding(curated: Curated, finding: Finding) -> tuple[Any, ...]:
    other = _shown(curated, finding.like) if finding.like >= 0 else None
    return finding, _shown(curated, finding.row), _shown(curated, finding.beside), other


def _shown(curated: Curated, row: int) -> tuple[str, str, str]:
    """A picture for the page: its face as a URL, name, and whom it is said to show."""
    face = base64.b64encode(curated.studied.show(row)).decode()
    return f"data:image/jpeg;base64,{face}", curated.studied.names[row], curated.people[curated.labels[row]]


def _proposals(curated: Curated) -> Iterable[tuple[Any, ...]]:
    names, people, labels = curated.studied.names, curated.people, curated.labels
    for f in curated.findings:
        other = ("", "") if f.like < 0 else (people[f.other_label], names[f.like])
        similar = "" if f.like < 0 else round(f.other, 4)
        yield names[f.row], people[labels[f.row]], f.verdict.value, *other, round(f.own, 4), similar
    for m in curated.merges:
        yield (
            names[m.row_a],
            people[m.label_a],
            "one person",
            people[m.label_b],
            names[m.row_b],
            "",
            round(m.similarity, 4),
        )
    for c in curated.copies:
        copied = people[labels[c.kept]], names[c.kept]
        yield names[c.copy], people[labels[c.copy]], "copy", *copied, "", round(c.similarity, 4)


def _copies(studied: Studied, misplaced: Set[int]) -> Iterable[Copy]:
    """Pictures of the same bytes or look; of each set the first stays that belongs to its identity."""
    rows = np.array([row for row, seen in enumerate(studied.hashes) if seen is not None], np.int64)
    hashes = [seen for seen in studied.hashes if seen is not None]
    gone: set[int] = set()
    for a, b, bits, similarity in duplicates(studied.vectors[rows], hashes, SAME_PICTURE_BITS, SAME_FACE):
        kept, copy = sorted((int(rows[a]), int(rows[b])), key=lambda row: (row in misplaced, row))
        if kept not in gone and copy not in gone:
            gone.add(copy)
            yield Copy(kept, copy, bits, studied.digests[kept] == studied.digests[copy], similarity)


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
