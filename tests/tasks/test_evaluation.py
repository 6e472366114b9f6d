"""Models are judged on the same faces, which are found once, and a model's verdict does not depend on its company."""

import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.settings import Settings
from models.spec import Role
from tasks.detect import Decoded, Detect
from tasks.evaluation import central_face, grouping, timing
from tasks.evaluation import seen as looking
from tasks.evaluation.central_face import ImagesMissing
from tasks.evaluation.comparison import columns, compare, plot_accuracy_over_ms, plot_rocs
from tasks.evaluation.recognition import calibrate, evaluate_verification
from tasks.evaluation.timing import median_ms
from tasks.evaluation.verification import Pairs, UnusablePairs, read_pairs
from tasks.execution.side_by_side import torch_threads
from tasks.model_version import ModelVersion
from tasks.recipe import WrongRole, version_for
from tests.pairs import few_pairs, pictures


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return read_pairs(few_pairs(tmp_path))


@pytest.fixture
def detector(machine: Settings) -> ModelVersion:
    return version_for(Role.DETECT, "mtcnn", machine)


@pytest.fixture
def embedders(machine: Settings) -> list[ModelVersion]:
    return [version_for(Role.EMBED, name, machine) for name in ("dlib-resnet", "lightcnn-9@1")]


def test_evaluations_compute_on_the_device_that_nights_compute_on(
    machine: Settings,
    detector: ModelVersion,
    embedders: list[ModelVersion],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Told from the CPU of other tests by its number, which it has for torch alone: this needs no GPU."""
    used: dict[str, set[object]] = {}

    def noting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            used.setdefault(name, set()).add(arguments[-1])
            return real(*arguments)

        return call

    for module in (central_face, looking):
        monkeypatch.setattr(module, "device", lambda: "cpu:0")
        for name in ("Detect", "load_for_inference", "embed", "describe_crops", "measure"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    describer = version_for(Role.DESCRIBE, "mini-xception", machine)
    names = sorted({*pairs.a[:2], *pairs.b[:2]})
    evaluate_verification(machine, detector, embedders[:1], pictures(), pairs)
    looking.look_at(machine, detector, pictures(), names, [describer], embedders[0])
    grouping.embed_labelled(machine, detector, embedders[0], pictures(), names, lambda done, total: None)
    assert used.keys() == {"Detect", "load_for_inference", "embed", "describe_crops", "measure"}
    assert set().union(*used.values()) == {"cpu:0"}


def test_models_side_by_side_see_each_face_once_and_get_the_verdict_they_get_alone(
    machine: Settings,
    detector: ModelVersion,
    embedders: list[ModelVersion],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    find = Detect.__call__

    def counting(self: Detect, items: Sequence[Decoded]) -> list[Decoded]:
        seen.extend(item.photo.key for item in items)
        return find(self, items)

    monkeypatch.setattr(Detect, "__call__", counting)
    together = evaluate_verification(machine, detector, embedders, pictures(), pairs)
    assert sorted(seen) == sorted({*pairs.a, *pairs.b})
    assert [verification.model for verification in together] == embedders
    dlib, lightcnn = together
    assert dlib.report.accuracy > 0.9
    assert lightcnn.report != dlib.report
    for embedder, verification in zip(embedders, together, strict=True):
        [alone] = evaluate_verification(machine, detector, [embedder], pictures(), pairs)
        assert alone.report == verification.report
        np.testing.assert_allclose(alone.similarities, verification.similarities, atol=1e-6)


def test_calibration_is_that_of_the_model_and_says_what_it_was_measured_on(
    machine: Settings, detector: ModelVersion, embedders: list[ModelVersion], pairs: Pairs
) -> None:
    [dlib] = evaluate_verification(machine, detector, embedders[:1], pictures(), pairs)
    calibration = calibrate(dlib, pairs, pictures())
    assert calibration.contract == embedders[0].contract
    assert calibration.source == "lfw_grey_128.tar, 20 pairs of folds 1, 2, 3, 4, 5"
    assert calibration.probability(1.0) > 0.9
    assert calibration.probability(0.0) < 0.1


def extracted(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir()
    with tarfile.open(pictures()) as archive:
        for member in archive:
            if member.name in names and (file := archive.extractfile(member)) is not None:
                (folder / member.name).write_bytes(file.read())
    return folder


def test_picture_that_cannot_be_read_counts_as_one_without_a_face(
    machine: Settings, detector: ModelVersion, embedders: list[ModelVersion], pairs: Pairs, tmp_path: Path
) -> None:
    images = extracted(tmp_path / "images", [*pairs.a, *pairs.b])
    [whole] = evaluate_verification(machine, detector, embedders[:1], images, pairs)
    assert whole.without_face == ()
    (images / pairs.a[0]).write_bytes(b"\xff\xd8\xff not a picture")
    [broken] = evaluate_verification(machine, detector, embedders[:1], images, pairs)
    assert broken.without_face == (pairs.a[0],)
    assert np.isnan(broken.similarities[0])
    assert broken.report.missing_pairs == int(np.isnan(broken.similarities).sum()) >= 1
    (images / pairs.a[0]).unlink()
    with pytest.raises(ImagesMissing, match=pairs.a[0]):
        evaluate_verification(machine, detector, embedders[:1], images, pairs)


def test_only_recognition_models_are_judged(machine: Settings) -> None:
    with pytest.raises(WrongRole, match="mtcnn@champion cannot embed: it is a model to detect"):
        version_for(Role.EMBED, "mtcnn@champion", machine)


def test_pairs_of_one_fold_are_refused(
    machine: Settings, detector: ModelVersion, embedders: list[ModelVersion], pairs: Pairs
) -> None:
    first = Pairs(pairs.fold[:4] * 0, pairs.a[:4], pairs.b[:4], pairs.same[:4])
    with pytest.raises(UnusablePairs, match="at least 2 are needed"):
        evaluate_verification(machine, detector, embedders[:1], pictures(), first)


@pytest.mark.long
def test_comparison_has_a_row_a_model_with_what_decides_between_them(
    machine: Settings,
    detector: ModelVersion,
    embedders: list[ModelVersion],
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "AT_LEAST", 1)
    comparison = compare(machine, detector, embedders, pictures(), pairs, budget_ms=1000)
    dlib, lightcnn = comparison.rows
    assert (dlib.model, dlib.dimension, dlib.licence) == ("dlib-resnet@1", 128, "CC0-1.0")
    assert (lightcnn.model, lightcnn.dimension) == ("lightcnn-9@1", 256)
    assert dlib.accuracy == comparison.verifications[0].report.accuracy > lightcnn.accuracy
    assert dlib.megabytes == pytest.approx(22.4, abs=0.1)
    for row in comparison.rows:
        assert 0 < row.ms_in_batch < 3 * row.ms_alone
        assert row.pipeline_ms is not None
        assert row.pipeline_ms > row.ms_alone / 2
        assert row.fits == (row.pipeline_ms <= 1000)
    assert "detection, alignment and embedding, over 32 decoded pictures of 128x128" in comparison.how
    assert columns(comparison)["model"] == ["dlib-resnet@1", "lightcnn-9@1"]
    for plot in (plot_rocs, plot_accuracy_over_ms):
        axes = plot(comparison).axes[0]
        labels = [str(drawn.get_label()) for drawn in [*axes.containers, *axes.lines]]
        assert sum(label.startswith(("dlib-resnet@1", "lightcnn-9@1")) for label in labels) == 2
    rows = tuple(replace(row, pipeline_ms=None, fits=None) for row in comparison.rows)
    assert {"pipeline_ms", "fits"} == columns(comparison).keys() - columns(replace(comparison, rows=rows)).keys()


def test_work_is_timed_in_one_thread_which_does_all_of_it() -> None:
    layer, x = torch.nn.Conv2d(64, 64, 3), torch.randn(4, 64, 64, 64)
    before = torch.get_num_threads()
    with torch_threads(1), torch.inference_mode():
        assert torch.get_num_threads() == 1
        layer(x)
        own, every = time.thread_time(), time.process_time()
        for _ in range(5):
            layer(x)
        own, every = time.thread_time() - own, time.process_time() - every
    assert torch.get_num_threads() == before
    assert own > 0.8 * every


def test_median_leaves_out_the_first_call_and_what_is_slow_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "AT_LEAST", 5)
    calls: list[int] = []

    def work() -> None:
        calls.append(len(calls))
        until = time.thread_time() + (0.05 if len(calls) in (1, 3) else 0.002)
        while time.thread_time() < until:
            pass

    assert 2 <= median_ms(work) < 10
    assert len(calls) == 6
