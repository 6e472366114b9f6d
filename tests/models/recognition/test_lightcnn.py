"""LightCNN against the official code, its checkpoint reader against the wrong files, and its alignment."""

import math

import pytest
import torch

from models.recognition.lightcnn import LIGHTCNN_9, LIGHTCNN_29, LIGHTCNN_29V2, LIGHTCNN_128, LIGHTCNN_V4
from models.spec import CheckpointMismatch
from tests.models.recognition.golden import assert_golden, checkpoint, empty_checkpoint, golden, network

SPECS = {"9": LIGHTCNN_9, "29": LIGHTCNN_29, "29v2": LIGHTCNN_29V2, "v4": LIGHTCNN_V4}
RENAMED = {"v4": {"conv2": "group1", "conv3": "group2", "conv4": "group3", "conv5": "group4"}}


def released(variant: str) -> dict[str, torch.Tensor]:
    return checkpoint(f"lightcnn/state_dict_{variant}.tsv")


@pytest.mark.parametrize("variant", SPECS)
def test_embedding_and_intermediates_are_those_of_the_official_code(variant):
    spec, stored = SPECS[variant], golden(f"lightcnn/golden_{variant}.npz")
    model = network(spec, f"lightcnn/state_dict_{variant}.tsv")
    assert_golden(spec, model, stored, renamed=RENAMED.get(variant), tolerance=1e-5)


@pytest.mark.parametrize("variant", SPECS)
def test_training_checkpoint_reads_like_the_bare_state_dict(variant):
    bare = released(variant)
    nested = {
        "epoch": 80,
        "arch": "LightCNN",
        "prec1": 97.5,
        "state_dict": {f"module.{key}": value for key, value in bare.items()},
        "optimizer": {"state": {}, "param_groups": []},
    }
    read, direct = SPECS[variant].official(nested), SPECS[variant].official(bare)
    assert read.keys() == direct.keys()
    assert not any(key.startswith("fc2") for key in read)
    assert all(torch.equal(read[key], direct[key]) for key in read)


@pytest.mark.parametrize(
    ("variant", "file", "named"),
    [
        ("9", "29", r"missing: fc1\.filter\.bias"),
        ("29", "9", r"unexpected: fc1\.filter\.bias"),
        ("29", "29v2", r"missing: fc\.filter\.bias, fc\.filter\.weight; 2 unexpected: fc\.bias, fc\.weight"),
        ("29v2", "29", r"missing: fc\.bias, fc\.weight; 2 unexpected: fc\.filter\.bias"),
        ("29v2", "v4", r"missing: conv1|unexpected: conv2\.filter"),
        ("v4", "29v2", r"group1\.conv\.filter\.bias"),
    ],
)
def test_checkpoint_of_another_variant_is_refused_by_key(variant, file, named):
    with pytest.raises(CheckpointMismatch, match=named):
        SPECS[variant].build(SPECS[variant].official(empty_checkpoint(f"lightcnn/state_dict_{file}.tsv")))


def test_file_without_weights_is_refused():
    with pytest.raises(CheckpointMismatch, match="no tensors by name: epoch, optimizer"):
        LIGHTCNN_9.official({"epoch": 3, "optimizer": {}})


@pytest.mark.parametrize("turn", [0.0, 25.0, -90.0, 180.0])
def test_midpoints_of_eyes_and_mouth_come_to_their_places_whatever_the_turn_of_the_head(turn):
    angle = math.radians(turn)
    upright = torch.tensor([[-30.0, -25.0], [30.0, -25.0], [0.0, 5.0], [-20.0, 35.0], [20.0, 35.0]])
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    landmarks = (upright @ rotation.T + torch.tensor([400.0, 300.0]))[None]
    transform = LIGHTCNN_128.transforms(torch.zeros(1, 4), landmarks)[0]
    crop_points = torch.tensor([[64.0, 64.0, 64.0 + 30 * 48 / 60], [40.0, 88.0, 40.0], [1.0, 1.0, 1.0]])
    wanted = torch.stack([landmarks[0, :2].mean(0), landmarks[0, 3:].mean(0), landmarks[0, 1]], dim=1)
    torch.testing.assert_close(transform @ crop_points, wanted, atol=1e-3, rtol=0)
