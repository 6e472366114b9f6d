"""MTCNN against the published cascade on real photos, and the promises of running it in batches."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from models.detection import area, mtcnn
from models.detection.area import PaddedPhotos
from models.detection.mtcnn import MTCNN, MTCNN_SPEC, PRODUCTION, PUBLISHED, CascadeSettings, Detections, PNet
from models.detection.nms import intersection_over_smaller, intersection_over_union, suppress
from models.detection.pyramid import STRIDE, plan
from models.spec import CheckpointMismatch
from tests.reference import seeded, shared


@pytest.fixture(scope="module")
def network(bundled: Callable[[str], nn.Module]) -> MTCNN:
    return cast(MTCNN, bundled("mtcnn"))


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    return json.loads(shared("reference/bundled/mtcnn/golden_photos.json").read_text(encoding="utf-8"))["photos"]


def photo(name: str) -> Tensor:
    return torch.from_numpy(np.array(Image.open(shared(f"data/photos/{name}")).convert("RGB")))


@pytest.fixture(scope="module")
def photos(golden) -> list[Tensor]:
    for entry in golden:
        assert hashlib.sha256(shared(f"data/photos/{entry['photo']}").read_bytes()).hexdigest() == entry["sha256"]
    return [photo(entry["photo"]) for entry in golden]


@pytest.fixture(scope="module")
def produced(network, photos) -> list[Detections]:
    return network.detect(photos)


def assert_same(found: Detections, expected: Detections, pixels: float = 1e-4) -> None:
    assert len(found) == len(expected)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=pixels)
    torch.testing.assert_close(found.landmarks, expected.landmarks, rtol=0, atol=pixels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "size"), [("pnet", 12), ("pnet", 37), ("pnet", 64), ("rnet", 24), ("onet", 48)], ids=str
)
def test_networks_give_the_published_outputs(network, net, size):
    pictures = [seeded().seeded_image(f"mtcnn_{net}_{size}_{which}", size) for which in "ab"]
    assert_outputs(network, net, (torch.cat(pictures) * 255 - 127.5) * 0.0078125, f"{net}_{size}")


@pytest.mark.parametrize(("net", "size"), [("pnet", 12), ("rnet", 24), ("onet", 48)])
def test_networks_give_the_published_outputs_on_patches_of_a_photo(network, net, size):
    pixels = photo("obama-480p.jpg").permute(2, 0, 1)[None].float()
    with np.load(shared("reference/bundled/mtcnn/golden_nets.npz")) as stored:
        boxes = stored["patch_boxes"].tolist()
    patches = [F.interpolate(pixels[..., y0:y1, x0:x1], size, mode="area") for x0, y0, x1, y1 in boxes]
    assert_outputs(network, net, (torch.cat(patches) - 127.5) * 0.0078125, f"patch_{net}")


def assert_outputs(network: MTCNN, net: str, pictures: Tensor, name: str) -> None:
    with torch.inference_mode():
        outputs = network.get_submodule(net)(pictures)
    with np.load(shared("reference/bundled/mtcnn/golden_nets.npz")) as stored:
        for output, key in zip(outputs, ("prob", "box", "landmark"), strict=False):
            wanted = torch.from_numpy(stored[f"{name}/{key}"])
            wanted = wanted[:, 1] if key == "prob" else wanted
            torch.testing.assert_close(output, wanted, rtol=0, atol=1e-5)


def test_faces_of_real_photos_are_those_of_the_published_cascade(network, photos, golden):
    for found, entry in zip(network.detect(photos, PUBLISHED), golden, strict=True):
        faces = entry["faces"]
        assert len(found) == len(faces), entry["photo"]
        for key, values, tolerance in (
            ("box", found.boxes, 0.01),
            ("landmarks", found.landmarks, 0.01),
            ("probability", found.scores, 1e-4),
        ):
            wanted = torch.tensor([face[key] for face in faces]).view_as(values)
            torch.testing.assert_close(values, wanted, rtol=0, atol=tolerance)


def test_production_finds_every_real_face_and_no_other(produced, golden):
    # The published settings find 30; the one false detection is the weakest of them.
    faces = [face for entry in golden for face in entry["faces"] if face["probability"] > 0.71]
    assert len(faces) == 29
    assert sum(len(found) for found in produced) == 29
    assert min(float(found.scores.min()) for found in produced) > 0.99


def test_faces_come_largest_first(produced):
    for found in produced:
        areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(dim=1)
        assert torch.equal(areas, areas.sort(descending=True).values)


def test_landmarks_of_a_face_cut_by_the_border_are_true_with_padding(network, produced, golden):
    names = [entry["photo"] for entry in golden]
    cut = produced[names.index("obama_partial_face2.jpg")].landmarks[0]
    assert float(cut[1, 0] - cut[0, 0]) == pytest.approx(102, abs=4)


@pytest.mark.parametrize(
    "settings",
    [pytest.param(PUBLISHED, id="published", marks=pytest.mark.long), pytest.param(PRODUCTION, id="production")],
)
def test_faces_do_not_depend_on_batch_neighbours(network, photos, settings):
    chosen = [photos[k] for k in (12, 5, 3, 13, 5)]  # different sizes, and one photo twice
    together = network.detect(chosen, settings)
    for pixels, found in zip(chosen, together, strict=True):
        assert len(found)
        assert_same(network.detect([pixels], settings)[0], found)
    assert_same(network.detect(chosen[::-1], settings)[0], together[-1])


def test_faces_do_not_depend_on_how_the_work_is_cut_up(network, photos, monkeypatch):
    chosen = photos[2:5]
    whole = network.detect(chosen)
    monkeypatch.setattr(mtcnn, "CPU_CALL", (1 << 12, 3))
    monkeypatch.setattr(area, "PIXELS_AT_ONCE", 1)
    for found, expected in zip(network.detect(chosen), whole, strict=True):
        assert_same(found, expected, 1e-3)


@pytest.mark.parametrize("name", ["dfdnet_test1.jpg", "obama_partial_face2.jpg"])
def test_padding_gives_what_a_padded_photo_gives(network, name):
    pixels = photo(name)
    pad = min(pixels.shape[:2]) // 4
    canvas = torch.full((pixels.shape[0] + 2 * pad, pixels.shape[1] + 2 * pad, 3), 127, dtype=torch.uint8)
    canvas[pad:-pad, pad:-pad] = pixels
    expected = network.detect([canvas], CascadeSettings(thresholds=PRODUCTION.thresholds, padding=0))[0]
    moved = Detections(expected.boxes - pad, expected.scores, expected.landmarks - pad)
    assert len(moved)
    assert_same(network.detect([pixels])[0], moved, 1e-3)


def test_plain_border_is_no_candidate(network):
    # What allows the scan to leave out cells that see only the border.
    grey = (torch.full((1, 3, 64, 64), float(mtcnn.GREY)) - 127.5) * 0.0078125
    with torch.inference_mode():
        assert network.pnet(grey)[0].max() < 0.001


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (13, 13), (19, 400), (20, 20)])
@pytest.mark.parametrize("value", [0, 127, 255])
def test_photos_without_room_for_a_face_have_none(network, shape, value):
    for settings in (PUBLISHED, PRODUCTION):
        found = network.detect([torch.full((*shape, 3), value, dtype=torch.uint8)], settings)[0]
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)
        assert found.landmarks.shape == (0, 5, 2)


def test_empty_batch_gives_no_results(network):
    assert network.detect([]) == []


def test_tiny_photos_in_a_batch_leave_the_others_alone(network, photos):
    tiny = torch.zeros(1, 1, 3, dtype=torch.uint8)
    before, found, after = network.detect([tiny, photos[3], tiny])
    assert len(before) == len(after) == 0
    assert_same(found, network.detect([photos[3]])[0])


def test_noise_gives_finite_results(network):
    noise = torch.randint(0, 256, (240, 320, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = network.detect([noise], CascadeSettings(thresholds=(0.1, 0.0, 0.0), padding=0.25))[0]
    assert len(found) > 10
    for values in (found.boxes, found.scores, found.landmarks):
        assert torch.isfinite(values).all()


def test_detect_works_in_inference_mode_and_without(network, photos):
    with torch.inference_mode():
        inside = network.detect([photos[3]])[0]
    assert_same(network.detect([photos[3]])[0], inside)
    assert not network.detect([photos[3]])[0].boxes.requires_grad


def test_read_only_pixels_are_accepted(network):
    pixels = np.array(photo("dfdnet_test5.jpg"))
    pixels.setflags(write=False)
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.from_numpy(pixels)
    assert len(network.detect([tensor])[0]) == 1


def test_rounding_as_on_another_device_moves_no_box_by_a_pixel(network, photos, produced):
    torch.manual_seed(0)
    noisy = {name: value * (1 + 1e-5 * torch.randn_like(value)) for name, value in network.state_dict().items()}
    for found, expected in zip(mtcnn.build(noisy).detect(photos[:8]), produced[:8], strict=True):
        assert len(found) == len(expected)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0.1)
        torch.testing.assert_close(found.landmarks, expected.landmarks, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, 40, 40, dtype=torch.uint8),
        torch.zeros(40, 40, 3),
        torch.zeros(40, 40, dtype=torch.uint8),
        torch.zeros(0, 40, 3, dtype=torch.uint8),
    ],
    ids=["channels first", "float", "grey", "empty"],
)
def test_other_pictures_are_refused_by_position(network, wrong):
    with pytest.raises(ValueError, match="photo 1 of the batch"):
        network.detect([torch.zeros(40, 40, 3, dtype=torch.uint8), wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_face_size": 11},
        {"min_face_size": float("nan")},
        {"thresholds": (0.6, 0.7)},
        {"thresholds": (0.6, 0.7, 1.2)},
        {"factor": 1.0},
        {"factor": 0.0},
        {"padding": -0.1},
        {"padding": float("nan")},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CascadeSettings(**wrong)


def test_weights_of_another_model_are_refused(tmp_path: Path):
    assert MTCNN_SPEC.bundled is not None
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "pnet.pt")
    with pytest.raises(CheckpointMismatch, match="not MTCNN"):
        MTCNN_SPEC.bundled.read({"facenet_pytorch/data/pnet.pt": tmp_path / "pnet.pt"})
    with pytest.raises(CheckpointMismatch, match="MTCNN"):
        mtcnn.build({"pnet.conv1.weight": torch.zeros(1)})


@given(
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    pad=st.integers(0, 60),
    pixels=st.sampled_from([1, 3000, 1 << 18]),
    seed=st.integers(0, 99),
)
def test_tiles_see_every_cell_once_but_those_of_the_plain_border(height, width, pad, pixels, seed):
    torch.manual_seed(seed)
    pnet = PNet().eval()
    photo = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    padded = PaddedPhotos([photo], [pad], mtcnn.GREY, torch.device("cpu"))
    scans: dict[int, tuple[Tensor, Tensor]] = {}

    def cells(level: Tensor) -> Tensor:
        return pnet(((level - 127.5) * 0.0078125).permute(2, 0, 1)[None])[0][0]

    with torch.inference_mode():
        for tile in plan(padded, 20, 0.709, pixels):
            if tile.level not in scans:
                whole = cells(padded.resized([0], tile.size, range(tile.size[0]), range(tile.size[1]))[0])
                scans[tile.level] = whole, torch.zeros_like(whole)
            whole, seen = scans[tile.level]
            found = cells(padded.resized([0], tile.size, tile.rows, tile.columns)[0])
            place = tuple(
                slice(part.start // STRIDE, part.start // STRIDE + count)
                for part, count in zip((tile.rows, tile.columns), found.shape, strict=True)
            )
            torch.testing.assert_close(found, whole[place], rtol=0, atol=1e-5)
            seen[place] += 1
        border = cells(torch.full((40, 40, 3), float(mtcnn.GREY)))[0, 0]
    assert scans
    for whole, seen in scans.values():
        assert seen.max() == 1
        torch.testing.assert_close(whole[seen == 0], border.expand(int((seen == 0).sum())), rtol=0, atol=1e-5)
        assert pad or seen.all()


# Area resizing


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    pad=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_resized_is_area_interpolation_of_the_padded_photo(height, width, rows, columns, pad, seed):
    picture = torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    padded = PaddedPhotos([picture[:1], picture], [3, pad], 127, torch.device("cpu"))
    whole = F.pad(picture.permute(2, 0, 1)[None].float(), (pad,) * 4, value=127)
    expected = F.interpolate(whole, (rows, columns), mode="area")[0].permute(1, 2, 0)
    part = range(rows // 3, rows), range(columns // 2, columns)
    found = padded.resized([1], (rows, columns), *part)[0]
    torch.testing.assert_close(found, expected[part[0].start :, part[1].start :], rtol=0, atol=1e-3)


def test_photos_of_equal_size_are_resized_together_as_each_alone():
    torch.manual_seed(0)
    sizes = [(40, 60), (33, 50), (40, 60), (40, 60), (33, 50)]
    photos = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8) for size in sizes]
    padded = PaddedPhotos(photos, [5] * len(photos), 127, torch.device("cpu"))
    for together in ([0, 2, 3], [3, 0], [1, 4], [2]):
        found = padded.resized(together, (21, 30), range(2, 20), range(1, 29))
        for k, own in zip(together, found, strict=True):
            alone = PaddedPhotos([photos[k]], [5], 127, torch.device("cpu"))
            assert torch.equal(own, alone.resized([0], (21, 30), range(2, 20), range(1, 29))[0])


@given(
    corners=st.lists(
        st.tuples(st.integers(0, 59), st.integers(0, 79), st.integers(1, 60), st.integers(1, 80)), min_size=1
    ),
    size=st.sampled_from([24, 48]),
)
def test_windows_are_area_interpolations(corners, size):
    pad, picture = 10, torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8)
    padded = PaddedPhotos([picture.flip(0), picture], [0, pad], 127, torch.device("cpu"))
    whole = F.pad(picture.permute(2, 0, 1)[None].float(), (pad,) * 4, value=127)
    boxes = torch.tensor([(x, y, min(x + w, 80), min(y + h, 60)) for y, x, h, w in corners])
    found = padded.windows(torch.ones(len(boxes), dtype=torch.int64), boxes, size)
    expected = [F.interpolate(whole[..., y0:y1, x0:x1], (size, size), mode="area") for x0, y0, x1, y1 in boxes.tolist()]
    torch.testing.assert_close(found, torch.cat(expected).permute(0, 2, 3, 1), rtol=0, atol=1e-3)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    pad=st.integers(0, 20),
    size=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_a_photo_resized_and_a_window_of_all_of_it_are_the_same_to_the_bit(height, width, pad, size, seed):
    picture = torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    padded = PaddedPhotos([picture], [pad], 127, torch.device("cpu"))
    everything = torch.tensor([[0, 0, width + 2 * pad, height + 2 * pad]])
    window = padded.windows(torch.zeros(1, dtype=torch.int64), everything, size)
    assert torch.equal(padded.resized([0], (size, size), range(size), range(size)), window)


def test_tables_that_wrap_around_still_give_true_means():
    white = torch.full((2904, 2904, 3), 255, dtype=torch.uint8)  # 255 * 2904^2 is above 2^31
    padded = PaddedPhotos([white], [0], 127, torch.device("cpu"))
    means = padded.resized([0], (5, 7), range(5), range(7))
    torch.testing.assert_close(means, torch.full_like(means, 255), rtol=0, atol=1e-4)


# Non-maximum suppression


def greedy(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, overlap) -> list[int]:
    """The definition, one box at a time."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda k: (int(groups[k]), -float(scores[k]), k)):
        rivals = [k for k in kept if groups[k] == groups[i]]
        if not rivals or not (overlap(boxes[rivals], boxes[i].expand(len(rivals), 4)) > threshold).any():
            kept.append(i)
    return kept


@given(
    boxes=st.lists(
        st.tuples(
            st.integers(-5, 30),
            st.integers(-5, 30),
            st.integers(1, 15),
            st.integers(1, 15),
            st.integers(0, 5),
            st.integers(0, 2),
        ),
        max_size=40,
    ),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7]),
    overlap=st.sampled_from([intersection_over_union, intersection_over_smaller]),
)
def test_suppression_is_the_greedy_rule(boxes, threshold, overlap):
    table = torch.tensor(boxes, dtype=torch.float32).view(-1, 6)
    corners = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
    scores, groups = table[:, 4] / 5, table[:, 5].long()
    expected = greedy(corners, scores, groups, threshold, overlap)
    assert suppress(corners, scores, groups, threshold, overlap).tolist() == expected


def test_suppression_in_small_steps_is_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(300, 2, generator=generator) * 100, torch.rand(300, 2, generator=generator) * 40 + 1
    boxes, scores = torch.cat([corner, corner + side], dim=1), torch.rand(300, generator=generator)
    groups = torch.randint(0, 3, (300,), generator=generator)
    whole = suppress(boxes, scores, groups, 0.4)
    monkeypatch.setattr("models.detection.nms.PAIRS_AT_ONCE", 50)
    assert torch.equal(suppress(boxes, scores, groups, 0.4), whole)
    assert whole.tolist() == greedy(boxes, scores, groups, 0.4, intersection_over_union)
