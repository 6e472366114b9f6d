"""FaceNet against the official code, and its checkpoint reader against the wrong files."""

import pytest
import torch
import torch.nn.functional as F

from models.recognition.facenet import FACENET_160, FACENET_CASIA_WEBFACE, FACENET_VGGFACE2
from models.recognition.lightcnn import LIGHTCNN_9
from models.spec import CheckpointMismatch
from tests.models.recognition.golden import (
    assert_close,
    assert_taps,
    empty_checkpoint,
    faces,
    golden,
    network,
    tap_names,
    taps,
)

VGGFACE2 = "facenet/state_dict_vggface2.tsv"
CASIA = "facenet/state_dict_casia-webface.tsv"


@pytest.mark.parametrize(
    ("spec", "table", "file", "gain"),
    [
        pytest.param(FACENET_VGGFACE2, VGGFACE2, "golden", 1.0, marks=pytest.mark.long),
        (FACENET_VGGFACE2, VGGFACE2, "golden_gain1.5", 1.5),
        (FACENET_CASIA_WEBFACE, CASIA, "golden_gain1.5", 1.5),
    ],
    ids=["vggface2", "vggface2-gain1.5", "casia-webface-gain1.5"],
)
def test_embedding_and_intermediates_are_those_of_the_official_code(spec, table, file, gain):
    stored = golden(f"facenet/{file}.npz")
    model = network(spec, table, gain)
    with torch.inference_mode(), taps(model, tap_names(stored)) as outputs:
        embeddings = model(faces(spec, stored))
    assert_taps(outputs, stored)
    # The golden faces lie at cosine 0.9998 of each other without gain: only a narrow tolerance tells them apart.
    assert_close(F.normalize(embeddings), stored["embedding"], 1.0, "embedding", tolerance=1e-5)


def test_checkpoint_of_the_other_training_set_is_refused():
    with pytest.raises(CheckpointMismatch, match=r"logits\.weight has 8631 classes.*facenet-vggface2"):
        FACENET_CASIA_WEBFACE.official(empty_checkpoint(VGGFACE2))


def test_checkpoint_of_another_network_is_refused_by_key():
    other = LIGHTCNN_9.official(empty_checkpoint("lightcnn/state_dict_9.tsv"))
    with pytest.raises(CheckpointMismatch, match=r"missing: block8\.branch0.*unexpected: fc1\.filter\.bias"):
        FACENET_VGGFACE2.build(other)


def test_crop_is_the_box_with_a_margin_of_14_of_160_pixels_and_no_fixed_aspect():
    box = torch.tensor([[100.0, 50.0, 100 + 146.0, 50 + 292.0]])
    transform = FACENET_160.transforms(box, torch.zeros(1, 5, 2))[0]
    corners = transform @ torch.tensor([[-0.5, 159.5], [-0.5, 159.5], [1.0, 1.0]])  # outer edges of the crop
    torch.testing.assert_close(corners + 0.5, torch.tensor([[93.0, 253.0], [36.0, 356.0]]))
