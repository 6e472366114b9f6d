"""Curation finds the labels that were spoiled, leaves the right ones alone, and deletes nothing."""

import csv
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select, update

from infra.catalog import collections
from infra.catalog.custody import audit
from infra.catalog.database import Catalog
from infra.catalog.tables.custody import Exhibit
from infra.catalog.tables.schema import ModelVersion
from infra.settings import Settings
from tasks.curation.labelled import Studied
from tasks.curation.proposals import ROUNDS, Round, Verdict, curate, duplicates, settled, united
from tasks.curation.report import curate_studied
from tasks.custody import erase
from tasks.training.collection import read_collection
from tests.command import Ended, visage
from tests.reference import shared

DIMENSION = 64
Vectors = NDArray[np.float32]


def crowd(sizes: Sequence[int], seed: int = 0, scatter: float = 0.65) -> tuple[Vectors, NDArray[np.int64]]:
    """Faces of people who are as like themselves as real ones are: a cosine of about 0.7 within and 0 across."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = random.normal(size=(len(sizes), DIMENSION)) / DIMENSION**0.5
    faces = centres[truth] + random.normal(size=(len(truth), DIMENSION)) * scatter / DIMENSION**0.5
    return (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32), truth.astype(np.int64)


def moved(truth: NDArray[np.int64], share: float, seed: int = 1) -> tuple[NDArray[np.int64], set[int]]:
    """Give some pictures to other people."""
    random = np.random.default_rng(seed)
    labels, people = truth.copy(), truth.max() + 1
    rows = random.permutation(len(truth))[: int(share * len(truth))]
    labels[rows] = (truth[rows] + random.integers(1, people, len(rows))) % people
    return labels, set(rows.tolist())


def wrong(found: Round) -> set[int]:
    return {finding.row for finding in found.findings if finding.verdict is not Verdict.DOUBTFUL}


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_pictures_that_were_moved_are_found_and_told_where_they_belong(share: float) -> None:
    vectors, truth = crowd([8] * 150)
    labels, spoiled = moved(truth, share)
    rounds = curate(vectors, labels)
    assert settled(rounds)
    found = wrong(rounds[-1])
    assert len(found & spoiled) / len(spoiled) > 0.98
    assert len(found & spoiled) / len(found) > 0.98
    homes = [f for f in rounds[-1].findings if f.verdict is Verdict.ELSEWHERE and f.row in spoiled]
    assert np.mean([f.other_label == truth[f.row] for f in homes]) > 0.99
    assert len(homes) > 0.9 * len(spoiled)
    assert all(labels[f.beside] == labels[f.row] and f.beside != f.row for f in homes)
    assert all(labels[f.like] == f.other_label for f in homes)
    assert rounds[0].statistics.wrong_share == pytest.approx(1 - (1 - share) ** 2, abs=0.12)


def test_clean_labels_are_left_alone() -> None:
    vectors, truth = crowd([1, 2, 3, 5, 9] * 40)
    rounds = curate(vectors, truth)
    assert settled(rounds)
    assert len(rounds[-1].findings) <= 2
    assert rounds[-1].merges == ()


def test_people_who_were_split_are_found_and_their_halves_are_no_homes_for_each_other() -> None:
    vectors, truth = crowd([6] * 100 + [1] * 200)
    labels = truth.copy()
    labels[[row for row in range(60) if row % 6 < 3]] = 300 + np.repeat(np.arange(10), 3)
    rounds = curate(vectors, labels)
    assert {(m.label_a, m.label_b) for m in rounds[-1].merges} == {(n, 300 + n) for n in range(10)}
    assert wrong(rounds[-1]) == set()
    assert united(rounds[-1].merges, 310)[300:].tolist() == list(range(10))


def test_two_pictures_that_contradict_each_other_are_doubtful_unless_one_has_a_home() -> None:
    vectors, truth = crowd([6] * 60 + [1] * 60)
    labels = truth.copy()
    one, other = 360, 361  # two people with one picture each, said to be one
    labels[other] = labels[one]
    labels[0] = labels[362]  # somebody whose other pictures are well known, said to be one with a single picture
    labels = np.unique(labels, return_inverse=True)[1]
    verdicts = {f.row: f.verdict for f in curate(vectors, labels)[-1].findings}
    assert verdicts == {one: Verdict.DOUBTFUL, other: Verdict.DOUBTFUL, 0: Verdict.ELSEWHERE}


def test_the_same_input_gives_the_same_answer_and_order_does_not_matter() -> None:
    vectors, truth = crowd([5] * 80)
    labels, _ = moved(truth, 0.1)
    assert len(np.unique(labels)) == 80
    order = np.random.default_rng(3).permutation(len(labels))
    first, again, shuffled = (
        curate(v, la)[-1] for v, la in ((vectors, labels), (vectors, labels), (vectors[order], labels[order]))
    )
    assert first == again
    assert {int(order[row]) for row in wrong(shuffled)} == wrong(first)


def test_rounds_come_to_an_end() -> None:
    vectors, truth = crowd([3] * 60, scatter=1.2)  # people hardly like themselves
    labels = np.unique(moved(truth, 0.5)[0], return_inverse=True)[1]
    assert 1 <= len(curate(vectors, labels)) <= ROUNDS


def test_copies_look_alike_in_picture_and_face() -> None:
    vectors, _ = crowd([3, 3])
    vectors[4] = vectors[0]
    hashes = [0b0, 0b1, 1 << 40, 7 << 20, 0b11, 0b0]
    assert [(a, b, bits) for a, b, bits, _ in duplicates(vectors, hashes, 3, 0.97)] == [(0, 4, 2)]


def test_a_copy_under_a_wrong_name_does_not_cost_the_picture_under_the_right_one() -> None:
    vectors, truth = crowd([8, 8, 8])
    vectors, truth = np.concatenate([vectors[23:], vectors]), np.append(0, truth)  # the first is of the third person
    names = tuple(f"{row:02}.jpg" for row in range(25))
    hashes = (24 << 50, *(row << 50 for row in range(1, 25)))
    people = tuple("abc"[label] for label in truth)
    curated = curate_studied(Studied(names, people, vectors, hashes, names, lambda row: b"", (), "tiny@1"))
    assert [names[finding.row] for finding in curated.findings] == ["00.jpg"]
    assert [(names[copy.kept], names[copy.copy]) for copy in curated.copies] == [("24.jpg", "00.jpg")]
    assert [name for name, _ in curated.cleaned()] == list(names[1:])


# --- The command, on real faces


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 12 people of LFW, 5 pictures each, of which two are in a wrong folder and one is there twice."""
    folder = tmp_path_factory.mktemp("faces") / "people"
    taken: dict[str, int] = {}
    with tarfile.open(shared("data/lfw_grey_128.tar")) as tar:
        names = sorted(member.name for member in tar if member.isfile())
        sizes = Counter(name.rpartition("_")[0] for name in names)
        chosen = sorted(person for person, size in sizes.items() if 8 <= size <= 20)[:12]
        for name in names:
            person = name.rpartition("_")[0]
            if person in chosen and taken.get(person, 0) < 5:
                taken[person] = taken.get(person, 0) + 1
                file = tar.extractfile(name)
                assert file is not None
                (folder / person).mkdir(parents=True, exist_ok=True)
                (folder / person / name).write_bytes(file.read())
    for a, b in ((0, 1), (2, 3)):
        first = min((folder / chosen[a]).iterdir())
        first.rename(folder / chosen[b] / f"wrong_{first.name}")
    twice = min((folder / chosen[5]).iterdir())
    shutil.copyfile(twice, folder / chosen[6] / f"zz_{twice.name}")
    return folder


def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Ended:
    for name in ("home", "weights", "tracking_uri"):
        monkeypatch.setenv(f"VISAGE_{name.upper()}", str(getattr(settings, name)))
    return visage("curate", *arguments)


@pytest.mark.slow
def test_command_writes_page_lists_and_json_and_training_reads_the_cleaned_list(
    faces: Path, weights_dir: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path / "home", weights=weights_dir, tracking_uri=tracking_uri)
    before = sorted(path.relative_to(faces) for path in faces.rglob("*"))
    ended = run(settings, monkeypatch, faces, "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (told["pictures"] + len(told["without_face"]), told["identities"]) == (61, 12)
    with (tmp_path / "out" / "proposals.csv").open() as file:
        proposals = list(csv.DictReader(file))
    wrongly = {row["image"]: row for row in proposals if row["proposal"] in ("elsewhere", "stranger")}
    spoiled = {path.relative_to(faces).as_posix() for path in faces.rglob("wrong_*")}
    assert spoiled <= set(wrongly)
    assert len(wrongly) <= len(spoiled) + 3
    copies = [row for row in proposals if row["proposal"] == "copy"]
    assert [Path(row["image"]).name.removeprefix("zz_") for row in copies] == [
        Path(copies[0]["other_image"]).name.removeprefix("zz_")
    ]
    cleaned = read_collection(faces, tmp_path / "out" / "cleaned.csv")
    assert spoiled.isdisjoint(cleaned.names)
    assert len(cleaned.names) == told["cleaned"] >= 55
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 3 * len(wrongly)
    assert "nothing was deleted or changed" in page
    assert sorted(path.relative_to(faces) for path in faces.rglob("*")) == before
    again = run(settings, monkeypatch, faces, "--out", tmp_path / "out")
    assert again.code == 1
    assert "is there already; name a new folder" in again.err


def test_a_collection_is_curated_by_the_vectors_that_are_there_and_an_erasure_finds_the_page(
    archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = shutil.copytree(archive.home_folder, tmp_path / "home")
    with Catalog(f"sqlite:///{home / 'catalog.db'}").write() as session:
        session.execute(update(ModelVersion).where(ModelVersion.role == "embed").values(serving=True))
    labels, out = tmp_path / "labels.csv", tmp_path / "out"
    labels.write_text(
        "image,identity\na.jpg,Eileen\nb.jpg,Eileen\nc/pair.jpg,Somebody\nz_copy_of_a.jpg,Somebody\nd.jpg,Cup\n"
    )
    settings = archive.model_copy(update={"home": home})
    ended = run(settings, monkeypatch, "--collection", "archive", "--labels", labels, "--out", out, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["pictures"], ended.json["without_face"]) == (4, ["d.jpg"])
    copies = [(row["image"], row["other_image"]) for row in ended.json["proposals"] if row["proposal"] == "copy"]
    assert ("z_copy_of_a.jpg", "a.jpg") in copies
    with Catalog(settings.catalog_url).read() as session:
        exhibits = session.scalars(select(Exhibit).where(Exhibit.kind == "curation")).all()
        assert [exhibit.place for exhibit in exhibits] == [str(out)]
        assert audit.entries(session, 1)[0].action == "curate"
        assert exhibits[0].collection_id == collections.by_name(session, "archive").id
        plan = erase.plan_image(session, "b.jpg", "archive")
    _, finished = erase.erase(Catalog(settings.catalog_url), settings, "tests", plan, "asked for")
    assert finished.left == ()
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("image,identity\na.jpg,Eileen\nb.jpg,Eileen\n", (), "all pictures are of 'Eileen'"),
        ("image,identity\nq.jpg,Eileen\n", (), "no photograph that the labels name has a face"),
        ("picture,who\na.jpg,Eileen\n", (), "no column image, identity"),
        ("image,identity\na.jpg,Eileen\n", ("--model", "dlib-resnet"), "compared by the version that queries use"),
    ],
)
def test_labels_that_cannot_be_curated_are_refused(
    content: str,
    arguments: tuple[str, ...],
    message: str,
    archive: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = shutil.copytree(archive.home_folder, tmp_path / "home")
    with Catalog(f"sqlite:///{home / 'catalog.db'}").write() as session:
        session.execute(update(ModelVersion).where(ModelVersion.role == "embed").values(serving=True))
    (tmp_path / "labels.csv").write_text(content)
    settings = archive.model_copy(update={"home": home})
    ended = run(
        settings,
        monkeypatch,
        "--collection",
        "archive",
        "--labels",
        tmp_path / "labels.csv",
        "--out",
        tmp_path / "out",
        *arguments,
    )
    assert ended.code in (1, 2)
    assert message in " ".join(ended.err.split()).replace("│ ", "")
    assert not (tmp_path / "out").exists()
