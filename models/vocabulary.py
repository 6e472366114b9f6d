"""The vocabulary: every attribute that any model gives, under one stable name whatever the model.

Models translate their own label order into these names and classes, so that two opinions on one face can be compared.

Conventions. Left and right are the picture's, not the person's (`image_left_eye` lies at the smaller x). Points are x, y in
pixels of the model's own crop, pixel centres at whole numbers. Angles are degrees: pitch grows looking up, yaw grows looking
towards the picture's right, roll grows tilting clockwise as seen. A class that a model doesn't know has probability 0.

Sensitive attributes are computed only where a collection switches them on. Sensitive are gender, age and race, and of
CelebA's forty those that describe the build of a face, its skin, its age or its beauty: they judge looks or stand in for
ethnicity, age or health. What somebody wears, does, or how the hair is done is not.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from models.spec import Attribute, Estimate, Kind

AGE = Attribute("age", Kind.YEARS, sensitive=True)
AGE_GROUP = Attribute(
    "age_group",
    Kind.CATEGORY,
    ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"),
    sensitive=True,
)
GENDER = Attribute("gender", Kind.CATEGORY, ("female", "male"), sensitive=True)
RACE = Attribute("race", Kind.CATEGORY, ("white", "black", "indian", "asian", "other"), sensitive=True)
EXPRESSION = Attribute(
    "expression",
    Kind.CATEGORY,
    ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"),
)

PITCH = Attribute("pitch", Kind.DEGREES)
YAW = Attribute("yaw", Kind.DEGREES)
ROLL = Attribute("roll", Kind.DEGREES)

# Measured on the photo, without learning: see `models.attributes.measured`.
INTER_EYE_DISTANCE = Attribute("inter_eye_distance", Kind.PIXELS)
SHARPNESS = Attribute("sharpness", Kind.FRACTION)
EXPOSURE = Attribute("exposure", Kind.FRACTION)
BRIGHTNESS = Attribute("brightness", Kind.FRACTION)
BEYOND_BORDER = Attribute("beyond_border", Kind.FRACTION)  # share of the face that the photo's border cuts off
COVERED = Attribute(
    "covered", Kind.FRACTION
)  # share of the face that looks as if a mask, a hand or a bar lay before it
VISIBILITY = Attribute(
    "visibility", Kind.FRACTION
)  # share of the face that pose, border and coverings leave to be seen
COLOR = Attribute("color", Kind.CATEGORY, ("grey", "toned", "color"))  # toned: of one hue, as sepia is

LANDMARKS_68 = Attribute("landmarks_68", Kind.POINTS)  # iBUG / 300W order
LANDMARKS_29 = Attribute("landmarks_29", Kind.POINTS)  # COFW order
LANDMARKS_98 = Attribute("landmarks_98", Kind.POINTS)  # WFLW order
LANDMARKS_19 = Attribute("landmarks_19", Kind.POINTS)  # AFLW order
OCCLUSION_29 = Attribute("occlusion_29", Kind.PROBABILITIES)  # (N, 29): that each of COFW's points is hidden

# LaPa knows the first eleven and counts ears as skin; CelebAMask-HQ knows all.
PARSING = Attribute(
    "parsing",
    Kind.MASK,
    (
        "background", "skin", "image_left_brow", "image_right_brow", "image_left_eye", "image_right_eye", "nose",
        "upper_lip", "inner_mouth", "lower_lip", "hair", "image_left_ear", "image_right_ear", "neck", "cloth",
        "glasses", "hat", "earring", "necklace",
    ),
)  # fmt: skip

_CELEBA_SENSITIVE = frozenset({
    "attractive", "bags_under_eyes", "bald", "big_lips", "big_nose", "chubby", "double_chin", "high_cheekbones",
    "narrow_eyes", "oval_face", "pale_skin", "pointy_nose", "receding_hairline", "rosy_cheeks", "young",
})  # fmt: skip


def _binary(name: str) -> Attribute:
    return Attribute(name, Kind.PROBABILITY, sensitive=name in _CELEBA_SENSITIVE)


CELEBA: tuple[Attribute, ...] = tuple(
    # Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015, in the data set's order; its "Male" is `gender`.
    GENDER if name == "gender" else _binary(name)
    for name in (
        "five_o_clock_shadow", "arched_eyebrows", "attractive", "bags_under_eyes", "bald", "bangs", "big_lips",
        "big_nose", "black_hair", "blond_hair", "blurry", "brown_hair", "bushy_eyebrows", "chubby", "double_chin",
        "eyeglasses", "goatee", "gray_hair", "heavy_makeup", "high_cheekbones", "gender", "mouth_slightly_open",
        "mustache", "narrow_eyes", "no_beard", "oval_face", "pale_skin", "pointy_nose", "receding_hairline",
        "rosy_cheeks", "sideburns", "smiling", "straight_hair", "wavy_hair", "wearing_earrings", "wearing_hat",
        "wearing_lipstick", "wearing_necklace", "wearing_necktie", "young",
    )
)  # fmt: skip

ATTRIBUTES: Mapping[str, Attribute] = MappingProxyType({
    attribute.name: attribute
    for attribute in (
        AGE, AGE_GROUP, GENDER, RACE, EXPRESSION, PITCH, YAW, ROLL, INTER_EYE_DISTANCE, SHARPNESS, EXPOSURE, BRIGHTNESS,
        BEYOND_BORDER, COVERED, VISIBILITY, COLOR, LANDMARKS_68, LANDMARKS_29, LANDMARKS_98, LANDMARKS_19, OCCLUSION_29,
        PARSING,
        *CELEBA,
    )
})  # fmt: skip


def second_opinion(attribute: Attribute, source: str) -> Attribute:
    """Name what another head of the same model says about `attribute`, e.g. `expression_affectnet`."""
    return replace(attribute, name=f"{attribute.name}_{source}")


def selected(wanted: frozenset[str] | None, known: Collection[str]) -> frozenset[str]:
    """Return which outputs a network is to compute: those `wanted`, or all that are `known`.

    Raises:
        ValueError: naming what the network can't give.
    """
    if wanted is None:
        return frozenset(known)
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"the model gives no {', '.join(unknown)}; it gives {', '.join(sorted(known))}")
    return wanted


def probability(p: Tensor) -> Estimate:
    """An estimate of a yes-or-no attribute from its probability (N,) or, for several at once, (N, K).

    The confidence is that of the likelier answer, averaged over K.
    """
    surer = torch.maximum(p, 1 - p)
    return Estimate(value=p, confidence=surer.flatten(1).mean(dim=1) if surer.ndim > 1 else surer)


def category(attribute: Attribute, probabilities: Tensor, labels: Sequence[str]) -> Estimate:
    """An estimate of a category from a model's probabilities (N, len(labels)) in the model's own order `labels`.

    Raises:
        ValueError: if a label isn't a class of the attribute, or the number of labels doesn't fit the probabilities.
    """
    ordered = probabilities.new_zeros(len(probabilities), len(attribute.classes))
    ordered[:, class_indices(attribute, probabilities.shape[1], labels)] = probabilities
    confidence, value = ordered.max(dim=1)
    return Estimate(value=value, confidence=confidence, probabilities=ordered)


def mask(attribute: Attribute, logits: Tensor, labels: Sequence[str]) -> Estimate:
    """An estimate of a label map (N, H, W) from a model's logits (N, len(labels), H, W) in the model's own order.

    The confidence is the mean probability of the winning class over all pixels that aren't background, 0 without any.

    Raises:
        ValueError: if a label isn't a class of the attribute, or the number of labels doesn't fit the logits.
    """
    indices = class_indices(attribute, logits.shape[1], labels).to(logits.device)
    probability, winner = logits.softmax(dim=1).max(dim=1)
    value = indices[winner]
    face = value != attribute.classes.index("background")
    confidence = (probability * face).sum(dim=(1, 2)) / face.sum(dim=(1, 2)).clamp_min(1)
    return Estimate(value=value, confidence=confidence)


def without_confidence(value: Tensor) -> Estimate:
    """An estimate (N, ...) of a model that doesn't say how sure it is."""
    return Estimate(value=value, confidence=value.new_full((len(value),), torch.nan))


def class_indices(attribute: Attribute, count: int, labels: Sequence[str]) -> Tensor:
    """Return where each of a model's `labels` stands among the classes of the attribute, (count,) int64.

    Raises:
        ValueError: if a label is unknown or repeated, or there aren't `count` of them.
    """
    unknown = [label for label in labels if label not in attribute.classes]
    if unknown or len(set(labels)) != len(labels) or len(labels) != count:
        problem = f"unknown {unknown}" if unknown else f"{len(labels)} labels for {count} outputs, or one twice"
        raise ValueError(f"labels {tuple(labels)} don't fit the attribute {attribute.name!r}: {problem}")
    return torch.tensor([attribute.classes.index(label) for label in labels])
