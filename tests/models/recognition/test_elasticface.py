"""ElasticFace against the official code, and its checkpoint reader against other depths and files."""

import pytest

from models.recognition.elasticface import ELASTICFACE_ARC, ELASTICFACE_COS_PLUS, IRESNET, UNITS, IResNet
from models.recognition.facenet import FACENET_VGGFACE2
from models.spec import CheckpointMismatch
from tests.models.recognition.golden import assert_golden, empty_checkpoint, golden, network

TABLE = "elasticface/state_dict.tsv"


@pytest.mark.parametrize(
    ("file", "gain"), [pytest.param("golden", 1.0, marks=pytest.mark.long), ("golden_gain0.7", 0.7)]
)
def test_embedding_and_intermediates_are_those_of_the_official_code(file, gain):
    stored = golden(f"elasticface/{file}.npz")
    assert_golden(ELASTICFACE_ARC, network(ELASTICFACE_ARC, TABLE, gain), stored)


@pytest.mark.parametrize("depth", UNITS)
def test_depth_is_read_from_the_keys(depth):
    built = IRESNET.build(IResNet(UNITS[depth]).state_dict())
    assert [len(stage) for stage in (built.layer1, built.layer2, built.layer3, built.layer4)] == list(UNITS[depth])


def test_other_depth_is_refused_by_key():
    shallow = IResNet(UNITS[50]).state_dict()
    with pytest.raises(CheckpointMismatch, match=r"missing: layer2\.10\.bn1\.bias"):
        ELASTICFACE_COS_PLUS.build(shallow)


def test_unknown_depth_is_refused_with_the_known_ones():
    odd = {key: value for key, value in IResNet(UNITS[18]).state_dict().items() if not key.startswith("layer3.1.")}
    with pytest.raises(CheckpointMismatch, match=r"layer4.*count \(2, 2, 1, 2\) units; known are \(2, 2, 2, 2\)"):
        IRESNET.build(odd)


def test_checkpoint_of_another_network_is_refused_by_key():
    other = FACENET_VGGFACE2.official(empty_checkpoint("facenet/state_dict_vggface2.tsv"))
    with pytest.raises(CheckpointMismatch, match=r"unexpected: block8\.branch0"):
        ELASTICFACE_ARC.build(other)
    with pytest.raises(CheckpointMismatch, match=r"count \(0, 0, 0, 0\) units"):
        IRESNET.build(other)
