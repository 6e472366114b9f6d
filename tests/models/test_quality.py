"""Quality: every part falls with what it measures, on real faces and in general."""

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from models.alignment import align
from models.quality import FACE_3D, POSE_SPREAD, QUALITY_TEMPLATE, WEIGHTS, Quality, assess_quality
from tests.reference import shared

PHOTOS = [
    "biden.jpg",
    "dfdnet_test2.jpg",
    "dfdnet_test4.jpg",
    "dfdnet_test6.png",
    "obama-480p.jpg",
    "old_10045.jpg",
    "rose_leslie_img1.jpg",
    "t_kit_with_rose.jpg",
    "t_obama_and_biden.jpg",
]


@dataclass(frozen=True)
class Face:
    """A piece of a photo (H, W, 3) uint8 around a face, and the face's landmarks (5, 2) in it."""

    pixels: Tensor
    landmarks: Tensor

    def changed(self, pixels: Tensor) -> "Face":
        """The same face in other pixels, possibly of another size."""
        (height, width), (new_height, new_width) = self.pixels.shape[:2], pixels.shape[:2]
        scale = torch.tensor([new_width / width, new_height / height])
        return Face(pixels, (self.landmarks + 0.5) * scale - 0.5)


@pytest.fixture(scope="module")
def faces(bundled: Callable[[str], nn.Module]) -> list[Face]:
    photos = [torch.from_numpy(np.array(Image.open(shared(f"data/photos/{name}")).convert("RGB"))) for name in PHOTOS]
    found = []
    for photo, detections in zip(photos, bundled("mtcnn").detect(photos), strict=True):
        for landmarks in detections.landmarks:
            around = 3 * float(torch.dist(landmarks[0], landmarks[1]))
            x, y = (max(int(v - around), 0) for v in landmarks.mean(dim=0).tolist())
            piece = photo[y : y + int(2 * around), x : x + int(2 * around)]
            found.append(Face(piece, landmarks - torch.tensor([x, y])))
    assert len(found) == 14
    return found


def assess(faces: list[Face]) -> Quality:
    landmarks = torch.stack([face.landmarks for face in faces])
    transforms = QUALITY_TEMPLATE.transforms(torch.zeros(len(faces), 4), landmarks)
    crops = align([face.pixels for face in faces], transforms, torch.arange(len(faces)), QUALITY_TEMPLATE.size)
    return assess_quality(crops, landmarks, torch.ones(len(faces)))


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    planes = F.pad(pixels.permute(2, 0, 1)[:, None].float(), (reach,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel[None, None, None]), kernel[None, None, :, None])
    return planes[:, 0].permute(1, 2, 0).round().byte()


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))


def smaller(pixels: Tensor, factor: int) -> Tensor:
    height, width = (max(side // factor, 1) for side in pixels.shape[:2])
    return torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BOX)))


def test_sharpness_of_every_face_falls_with_blur(faces):
    steps = [assess(faces).sharpness]
    steps += [assess([face.changed(blurred(face.pixels, sigma)) for face in faces]).sharpness for sigma in (1, 2, 4)]
    for sharper, softer in itertools.pairwise(steps):
        assert (softer < sharper).all()
    assert steps[-1].median() < 0.25 * steps[0].median()


def test_sharpness_and_size_of_every_face_fall_with_shrinking(faces):
    steps = [assess(faces)]
    steps += [assess([face.changed(smaller(face.pixels, factor)) for face in faces]) for factor in (2, 4, 8)]
    for larger, less in itertools.pairwise(steps):
        assert (less.size < larger.size).all()
        # Where more pixels are left than the crop shows, nothing visible is lost.
        shows_it = less.inter_eye_distance < 0.9 * 63
        assert (less.sharpness[shows_it] < larger.sharpness[shows_it]).all()
        assert (less.overall < larger.overall).all()


def test_sharpness_falls_with_jpeg_wear_despite_its_block_edges(faces):
    steps = [
        assess([face.changed(jpeg(face.pixels, quality)) for face in faces]).sharpness for quality in (95, 30, 10, 5)
    ]
    means = [float(step.mean()) for step in steps]
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.8 * means[0]
    assert (steps[2] < steps[0]).float().mean() > 0.8


def test_sharpness_does_not_depend_on_contrast_and_brightness(faces):
    plain = assess(faces).sharpness
    dim = assess([face.changed((face.pixels.float() * 0.5 + 40).round().byte()) for face in faces]).sharpness
    torch.testing.assert_close(dim, plain, rtol=0, atol=0.07)


def test_sharpness_of_a_face_cut_by_the_border_is_that_of_what_is_left(faces):
    whole = assess(faces).sharpness
    halves = []
    for face in faces:
        left = int(face.landmarks[:, 0].mean())
        halves.append(Face(face.pixels[:, left:], face.landmarks - torch.tensor([left, 0])))
    torch.testing.assert_close(assess(halves).sharpness, whole, rtol=0, atol=0.25)


def test_exposure_falls_with_lost_contrast_shadow_and_glare(faces):
    plain = assess(faces).exposure
    for change in (
        lambda x: 100 + 0.2 * (x - 100),
        lambda x: x * 2.2,
        lambda x: x - 130,
    ):
        changed = [face.changed(change(face.pixels.float()).round().clamp(0, 255).byte()) for face in faces]
        exposure = assess(changed).exposure
        assert (exposure < plain).float().mean() > 0.9
        assert exposure.mean() < plain.mean() - 0.1


def test_a_profile_is_less_frontal_than_the_others(faces):
    quality = assess(faces)
    assert quality.frontalness.argmin() == len(faces) - 1  # the girl in t_obama_and_biden.jpg, looking aside
    assert quality.yaw[-1] < -25
    assert quality.frontalness.median() > 0.85


# Synthetic faces


def projected(yaw: float, pitch: float, roll: float, scale: float) -> Tensor:
    """Landmarks (5, 2) of the average face, turned (degrees) and seen from afar."""
    a, b, c = (math.radians(v) for v in (yaw, pitch, roll))
    about_y = torch.tensor([[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]])
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
    about_z = torch.tensor([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    turned = torch.tensor(FACE_3D) @ (about_z @ about_y @ about_x).T
    return turned[:, :2] * scale + 300


def grey(count: int = 1) -> Tensor:
    return torch.full((count, 256, 256, 3), 128, dtype=torch.uint8)


@given(yaw=st.floats(-60, 60), pitch=st.floats(-40, 40), scale=st.floats(5, 500))
def test_pose_of_a_turned_average_face_is_recovered(yaw: float, pitch: float, scale: float):
    quality = assess_quality(grey(), projected(yaw, pitch, 0, scale)[None], torch.ones(1))
    assert float(quality.yaw) == pytest.approx(yaw, abs=0.5)
    assert float(quality.pitch) == pytest.approx(pitch, abs=0.5)


@given(roll=st.floats(-170, 170))
def test_roll_is_measured_and_costs_nothing(roll: float):
    quality = assess_quality(grey(), projected(0, 0, roll, 80)[None], torch.ones(1))
    assert float(quality.roll) == pytest.approx(roll, abs=0.1)
    assert float(quality.frontalness) == pytest.approx(1, abs=1e-3)
    assert float(quality.inter_eye_distance) == pytest.approx(80, abs=0.01)


def test_signs_of_pose_are_the_documented_ones():
    poses = torch.stack([projected(30, 0, 0, 80), projected(0, 20, 0, 80), projected(0, 0, 10, 80)])
    quality = assess_quality(grey(3), poses, torch.ones(3))
    straight = projected(0, 0, 0, 80)
    assert poses[0, 2, 0] > straight[2, 0]  # the nose points to image-right
    assert quality.yaw[0] > 25
    assert poses[1, 2, 1] < straight[2, 1]  # the nose rises towards the eyes
    assert quality.pitch[1] > 15
    assert poses[2, 1, 1] > poses[2, 0, 1]  # the image-right eye is lower: turned clockwise
    assert quality.roll[2] > 5


def test_frontalness_falls_with_every_degree():
    turned = assess_quality(grey(), projected(POSE_SPREAD, 0, 0, 80)[None], torch.ones(1))
    assert float(turned.frontalness) == pytest.approx(math.exp(-0.5), abs=0.01)
    angles = torch.arange(0, 75, 5).tolist()
    for turned in (
        torch.stack([projected(angle, 0, 0, 80) for angle in angles]),
        torch.stack([projected(-angle, 0, 0, 80) for angle in angles]),
        torch.stack([projected(0, angle, 0, 80) for angle in angles]),
    ):
        frontalness = assess_quality(grey(len(angles)), turned, torch.ones(len(angles))).frontalness
        assert (frontalness.diff() < 0).all()


@given(
    seed=st.integers(0, 999),
    spread=st.floats(0, 127),
    score=st.floats(0, 1),
    points=st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=5, max_size=5),
)
def test_scores_are_bounded_and_never_nan(seed: int, spread: float, score: float, points: list[tuple[float, float]]):
    noise = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    crops = (127.5 + noise * spread).byte()
    quality = assess_quality(crops, torch.tensor([points]), torch.tensor([score]))
    for name in ("overall", *WEIGHTS):
        assert 0 <= float(getattr(quality, name)) <= 1
    for name, part in quality.parts().items():
        assert torch.isfinite(part).all(), name
        assert part.dtype == torch.float32


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_crop_without_a_face_in_it_scores_zero(value: int):
    crops = torch.full((1, 256, 256, 3), value, dtype=torch.uint8)
    quality = assess_quality(crops, projected(0, 0, 0, 80)[None], torch.ones(1))
    assert float(quality.sharpness) < 1e-6
    assert float(quality.exposure) < 1e-6
    assert float(quality.overall) < 1e-3


def test_overall_is_the_weighted_geometric_mean_of_its_parts(faces):
    quality = assess(faces)
    logs = sum(weight * getattr(quality, name).log() for name, weight in WEIGHTS.items())
    torch.testing.assert_close(quality.overall, torch.as_tensor(logs).exp())
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_quality_does_not_depend_on_batch_neighbours(faces):
    together = assess(faces)
    for k in (0, 5):
        torch.testing.assert_close(assess(faces[k : k + 1]).overall[0], together.overall[k], rtol=0, atol=1e-5)


def test_no_faces_give_no_scores():
    quality = assess_quality(grey(0), torch.zeros(0, 5, 2), torch.zeros(0))
    assert quality.overall.shape == (0,)
    assert all(part.shape == (0,) for part in quality.parts().values())


def test_crops_of_another_template_are_refused():
    with pytest.raises(ValueError, match="QUALITY_TEMPLATE"):
        assess_quality(torch.zeros(1, 150, 150, 3, dtype=torch.uint8), torch.zeros(1, 5, 2), torch.ones(1))
    with pytest.raises(ValueError, match="QUALITY_TEMPLATE"):
        assess_quality(grey().float(), torch.zeros(1, 5, 2), torch.ones(1))
