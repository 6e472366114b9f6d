"""DFDNet against outputs of the official code, and what a person may rely on beside them."""

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.restoration.components import PARTS
from models.restoration.dfdnet import (
    BINOMIAL,
    CHANNELS,
    DFDNET,
    ENTRIES,
    SHORT,
    DFDNet,
    build,
    official,
)
from models.spec import CheckpointMismatch
from tests.models.restoration.taps import Tap, assert_output, assert_same, stages, tapped
from tests.reference import seeded, shared

BOXES = ((139, 187, 231, 279), (281, 186, 373, 278), (203, 246, 309, 352), (188, 320, 325, 457))


@cache
def released() -> dict[str, Any]:
    """A checkpoint in the released form: seeded, with true constants and converged spectral vectors, and a dictionary of 8."""
    table = shared("reference/dfdnet/state_dict.tsv").read_text().splitlines()[1:]
    shapes = {key: tuple(map(int, shape.split(","))) for key, _, shape in (row.split("\t") for row in table)}
    tensors = {  # the classifier is half of all values, slow to seed and left out on reading
        key: torch.zeros(shape) if ".classifier." in key else seeded().seeded_tensor(key, shape)
        for key, shape in shapes.items()
    }
    tensors["VggExtract.RGB_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    tensors["VggExtract.RGB_std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    for key, value in tensors.items():
        if ".conv1.0.weight" in key and value.shape[1:] == (1, 3, 3):
            tensors[key] = BINOMIAL.expand_as(value).clone()
        elif key.startswith("VggExtract.features.") and value.ndim == 4:
            tensors[key] = value * np.float32(np.sqrt(2))
        elif key.endswith("weight_u"):
            layer = key.removesuffix("weight_u")
            u = value / value.norm()
            v = tensors[f"{layer}weight_orig"].flatten(1).T @ u
            tensors[key], tensors[f"{layer}weight_v"] = u, v / v.norm()
    return {**tensors, **{f"{name}_center": random_entries(name, 8) for name in ENTRIES}}


def random_entries(name: str, count: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}_center".encode())))
    return rng.standard_normal((count, *ENTRIES[name])).astype(np.float32)


@cache
def network() -> DFDNet:
    return build(official(released()))


@cache
def golden() -> Any:
    return np.load(shared("reference/dfdnet/golden.npz"))


def face() -> Tensor:
    return seeded().seeded_image("golden-0", 512) * 2 - 1


def boxes(*shifts: int) -> Tensor:
    return torch.stack([torch.tensor(BOXES) + shift for shift in shifts or (0,)])


def tap(stage: str) -> Tap:
    """Where in our network the golden's stage of this name is to be seen."""

    def returned(inputs: Any, output: Any) -> Tensor:
        return output

    def taken(index: int) -> Callable[[Any, Any], Tensor]:
        return lambda inputs, output: inputs[index]

    kind, _, rest = stage.partition(".")
    if kind == "vgg":
        piece = list(CHANNELS).index(int(rest.split(".")[0]))
        last_convolution = ("7", "16", "25", "34")[piece]
        return f"VggExtract.features.{piece}" + (
            f".{last_convolution}" if rest.endswith("before_relu") else ""
        ), returned
    if kind in ("swap_minus_feature", "confidence"):
        return rest, taken(0) if kind == "swap_minus_feature" else returned
    modules = {"shift": f"{kind}.ShiftModel1", "scale": f"{kind}.ScaleModel1", "before_tanh": f"{kind}.4"}
    return modules.get(rest, kind), taken(1) if rest == "updated_feature" else returned


def test_dictionary_entries_are_scored_and_chosen_as_by_the_official_code() -> None:
    with torch.inference_mode():
        features = network().VggExtract(face())
        for i, scale in enumerate(CHANNELS):
            for j, part in enumerate(PARTS):
                x1, y1, x2, y2 = (edge * scale // 512 for edge in BOXES[j])
                name = f"{part}_{scale}"
                side = network().dictionary.side(name)
                crop = torch.nn.functional.interpolate(
                    features[scale][..., y1:y2, x1:x2], (side, side), mode="bilinear"
                )
                scores = network().dictionary.scores(crop, name)[0].numpy()
                np.testing.assert_allclose(scores, golden()["scores"][i, j], rtol=1e-5, err_msg=name)
                assert scores.argmax() == golden()["indices"][i, j], name


def test_official_weights_give_the_official_intermediates_and_output() -> None:
    expected = stages(golden())
    assert len(expected) == 58
    with torch.inference_mode(), tapped(network(), {name: tap(name) for name in expected}) as seen:
        output = network()(face(), boxes())
    for name, values in expected.items():
        assert_same(seen[name], values, name)
    assert_output(output, golden())


@pytest.mark.long
def test_restoration_does_not_depend_on_batch_neighbours() -> None:
    faces = torch.cat([face(), seeded().seeded_image("face-1", 512) * 2 - 1])
    where = boxes(0, 20)
    with torch.inference_mode():
        together = network()(faces, where)
        alone = torch.cat([network()(faces[i : i + 1], where[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_components_do_not_depend_on_batch_neighbours() -> None:
    torch.manual_seed(0)
    features, where = torch.randn(3, 512, 32, 32), boxes(0, 40, -30)
    with torch.inference_mode():
        together = network().updated(features, where, 32)
        alone = torch.cat([network().updated(features[i : i + 1], where[i : i + 1], 32) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_features_outside_the_boxes_stay_and_the_last_part_wins_an_overlap() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 512, 32, 32)
    with torch.inference_mode():
        updated = network().updated(features, boxes(), 32)
        mouth_alone = network().updated(features, boxes()[:, [3, 3, 3, 3]], 32)
    covered = torch.zeros(32, 32, dtype=torch.bool)
    for x1, y1, x2, y2 in (boxes()[0] // 16).tolist():
        covered[y1:y2, x1:x2] = True
    assert torch.equal(updated[..., ~covered], features[..., ~covered])
    assert not torch.isclose(updated, features)[..., covered].any(dim=1).all()
    x1, y1, x2, y2 = (boxes()[0, 3] // 16).tolist()
    torch.testing.assert_close(updated[..., y1:y2, x1:x2], mouth_alone[..., y1:y2, x1:x2])


@pytest.mark.parametrize(
    "box", [(-3, 187, 90, 279), (430, 187, 513, 270), (200, 300, 205, 330)], ids=["left", "right", "thin"]
)
def test_a_box_that_cannot_be_used_is_named(box: tuple[int, ...]) -> None:
    where = boxes(0, 0)
    where[1, 2] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"the nose of face 1 has the box"):
        network()(face().expand(2, -1, -1, -1), where)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"faces \(N, 3, 512, 512\)"):
        network()(torch.zeros(1, 3, 256, 256), boxes())


def test_a_checkpoint_without_its_dictionary_says_where_that_is() -> None:
    alone = {key: value for key, value in released().items() if not key.endswith("_center")}
    with pytest.raises(CheckpointMismatch, match=r"DictionaryCenter512/\*\.npy"):
        build(official(alone))


def test_a_dictionary_of_another_size_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match=r"nose_64_center has shape \(8, 12\)"):
        official({**released(), "nose_64_center": np.zeros((8, 12), np.float32)})


def test_another_network_is_refused_by_its_keys() -> None:
    tensors = {key: value for key, value in released().items() if not key.startswith("up3.")}
    with pytest.raises(CheckpointMismatch, match=r"missing: up3\.ScaleModel1\.0\.bias"):
        build(official(tensors))


def test_a_spectral_weight_without_its_vectors_is_refused() -> None:
    tensors = {key: value for key, value in released().items() if key != "up0.convup.1.weight_u"}
    with pytest.raises(CheckpointMismatch, match=r"up0\.convup\.1\.weight_orig has no 'up0\.convup\.1\.weight_u'"):
        official(tensors)


def test_spectral_normalisation_is_undone_as_torch_does_it() -> None:
    torch.manual_seed(0)
    layer = torch.nn.utils.spectral_norm(torch.nn.Conv2d(4, 6, 3), n_power_iterations=3)
    x = torch.randn(1, 4, 8, 8)
    layer(x)
    layer.eval()
    weight = official({f"layer.{key}": value for key, value in layer.state_dict().items()})["layer.weight"]
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, layer.bias), layer(x))


def test_dictionary_is_read_flat_or_shaped() -> None:
    entries = {name: random_entries(name, 2) for name in ENTRIES}
    arrays = {f"{name}_center": e.reshape(2, -1) if "mouth" in name else e for name, e in entries.items()}
    tensors = official({**arrays, "up4.4.bias": torch.zeros(3)})
    for name, shape in ENTRIES.items():
        normalised = tensors[f"dictionary.{name}"]
        assert normalised.shape == (2, *shape)
        torch.testing.assert_close(normalised.mean(dim=(2, 3)), torch.zeros(2, shape[0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(normalised.std(dim=(2, 3)), torch.ones(2, shape[0]), rtol=0, atol=1e-3)


def test_every_confidence_network_has_its_own_weights() -> None:
    names = {f"{SHORT[part]}_{scale}" for part in PARTS for scale in CHANNELS}
    assert len({network().get_submodule(name)[0].weight.sum().item() for name in names}) == 16


def test_boxes_come_from_the_landmarks_that_the_template_aligns() -> None:
    assert DFDNET.guide is not None
    assert DFDNET.preprocess is not None
    template = torch.tensor(DFDNET.preprocess.template.points)  # type: ignore[attr-defined]
    where = DFDNET.guide(template[None])
    assert where.shape == (1, 4, 4)
    for (x1, y1, x2, y2), (x, y) in zip(where[0, :3].tolist(), template[:3].tolist(), strict=True):
        assert x1 < x < x2
        assert y1 < y < y2
