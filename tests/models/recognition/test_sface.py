"""SFace's backbones against the official code, and their checkpoint reader against the wrong files."""

import pytest

from models.recognition.elasticface import UNITS, IResNet
from models.recognition.sface import SFACE_IR_50, SFACE_IR_101, SFACE_MOBILEFACENET
from models.spec import CheckpointMismatch
from tests.models.recognition.golden import assert_golden, empty_checkpoint, golden, network

SPECS = {"IR_50": SFACE_IR_50, "IR_101": SFACE_IR_101, "MobileFaceNet": SFACE_MOBILEFACENET}


@pytest.mark.parametrize(
    ("variant", "gain"),
    [
        pytest.param("IR_50", 1.0, marks=pytest.mark.long),
        ("IR_50", 0.6),
        pytest.param("IR_101", 1.0, marks=pytest.mark.long),
        ("IR_101", 0.5),
        pytest.param("MobileFaceNet", 1.0, marks=pytest.mark.long),
        ("MobileFaceNet", 0.8),
    ],
)
def test_embedding_and_intermediates_are_those_of_the_official_code(variant, gain):
    suffix = "" if gain == 1.0 else f"_gain{gain}"
    stored = golden(f"sface/golden_{variant}{suffix}.npz")
    assert_golden(SPECS[variant], network(SPECS[variant], f"sface/state_dict_{variant}.tsv", gain), stored)


@pytest.mark.parametrize(
    ("variant", "file", "named"),
    [
        ("IR_101", "IR_50", r"missing: body\.16\.shortcut_layer\.0\.weight"),
        ("IR_50", "IR_101", r"unexpected: body\.16\.shortcut_layer\.0\.weight"),
        ("MobileFaceNet", "IR_50", r"missing: conv_1\.batchnorm\.bias"),
        ("IR_50", "MobileFaceNet", r"unexpected: conv_1\.batchnorm\.bias"),
    ],
)
def test_checkpoint_of_another_backbone_is_refused_by_key(variant, file, named):
    spec = SPECS[variant]
    with pytest.raises(CheckpointMismatch, match=named):
        spec.build(spec.official(empty_checkpoint(f"sface/state_dict_{file}.tsv")))


def test_iresnet_is_not_taken_for_ir():
    with pytest.raises(CheckpointMismatch, match=r"missing: body\.0\.res_layer.*unexpected: bn1\.bias"):
        SFACE_IR_50.build(IResNet(UNITS[50]).state_dict())
