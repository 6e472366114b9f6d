"""Faceptor: recognition, age, attributes, expression, parsing and landmarks from one ViT-B/16.

Qin et al., "Faceptor: A Generalist Model for Face Perception", ECCV 2024 (arXiv:2403.09500). Variants: Base, Full (more
data sets), Layer-Attention (Full, reading six encoder blocks) and the authors' baseline Naive. Code MIT; trained on sets
largely for non-commercial research.

A checkpoint serves three models: what needs aligned crops of 112x112 (age, attributes, expression), what needs pictures of
512x512 (parsing, landmarks), and the embedding. Each keeps its own part of the weights.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attributes.clip_vit import VisionTransformer
from models.attributes.heads import embedding_head
from models.attributes.naive_faceptor import NaiveMapTasks, NaiveValueTasks
from models.attributes.query_decoder import MapTasks, ValueTasks
from models.checkpoint import load, shape_of, unwrap
from models.spec import Attribute, CheckpointMismatch, Color, Estimate, Kind, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112, FFHQ_512
from models.vocabulary import (
    AGE,
    CELEBA,
    EXPRESSION,
    GENDER,
    LANDMARKS_19,
    LANDMARKS_29,
    LANDMARKS_68,
    LANDMARKS_98,
    PARSING,
    category,
    mask,
    probability,
    second_opinion,
    selected,
)

# The tasks of each variant. Where several speak of one attribute, the first gives it and the others second opinions: the
# sets of photos from everyday life before mug shots, and before the larger but noisier ones.
_BASE = ("age_morph2", "biattr_celeba", "affect_rafdb", "affect_affectnet", "parsing_celebam", "align_300w")
_FULL = (
    "age_utkface", "age_morph2", "biattr_celeba", "affect_rafdb", "affect_affectnet", "affect_ferplus",
    "parsing_celebam", "parsing_lapa", "align_300w", "align_cofw", "align_wflw", "align_aflw",
)  # fmt: skip
VARIANTS: Mapping[str, tuple[str, ...]] = {"base": _BASE, "full": _FULL, "layer-attention": _FULL, "naive": _BASE}
VALUES, MAPS, EMBEDDING = "values", "maps", "embedding"
KINDS: Mapping[str, tuple[str, ...]] = {VALUES: ("age", "biattr", "affect"), MAPS: ("parsing", "align"), EMBEDDING: ()}

# AffectNet's order, in all tasks.
EXPRESSION_LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
PARSING_LABELS = {
    # CelebAMask-HQ in Faceptor's own order; what it calls a person's right lies on the picture's left.
    "parsing_celebam": (
        "background", "neck", "skin", "cloth", "image_left_ear", "image_right_ear", "image_left_brow", "image_right_brow",
        "image_left_eye", "image_right_eye", "nose", "inner_mouth", "lower_lip", "upper_lip", "hair", "glasses", "hat",
        "earring", "necklace",
    ),
    "parsing_lapa": (
        "background", "skin", "image_left_brow", "image_right_brow", "image_left_eye", "image_right_eye", "nose",
        "upper_lip", "inner_mouth", "lower_lip", "hair",
    ),
}  # fmt: skip
_LANDMARKS = {
    "align_300w": LANDMARKS_68,
    "align_cofw": LANDMARKS_29,
    "align_wflw": LANDMARKS_98,
    "align_aflw": LANDMARKS_19,
}
_MAIN = {"age": AGE, "affect": EXPRESSION, "parsing": PARSING}
MAP_SCALE = 4  # input pixels for each cell of a landmark's map
AGE_MARGIN = 5  # years around the estimate whose probability is the confidence


def outputs(tasks: Iterable[str]) -> dict[str, tuple[Attribute, ...]]:
    """Return what each task gives, under names that are unique among `tasks`."""
    given: dict[str, tuple[Attribute, ...]] = {}
    for task in tasks:
        kind, _, data_set = task.partition("_")
        if kind == "biattr":
            given[task] = CELEBA
        elif kind == "align":
            given[task] = (_LANDMARKS[task],)
        else:
            first = not any(other.startswith(kind) for other in given)
            given[task] = (_MAIN[kind] if first else second_opinion(_MAIN[kind], data_set),)
    return given


class Faceptor(nn.Module):
    """The encoder and either the tasks that give values or those that give maps."""

    def __init__(self, state_dict: StateDict, tasks: tuple[str, ...], heads: type[nn.Module]) -> None:
        super().__init__()
        self.outputs = outputs(tasks)
        self.visual = VisionTransformer(state_dict, "visual.")
        self.tasks = heads(state_dict, tasks)

    def forward(self, x: Tensor, wanted: frozenset[str] | None = None) -> dict[str, Tensor]:
        """Return the wanted outputs (all if None) of normalised pictures (N, 3, S, S) by attribute name; run no other task.

        Logits: age (N, 101), expression (N, 7), binary attributes and gender (N,), parsing (N, classes, S, S), landmarks
        (N, points, S/4, S/4).

        Raises:
            ValueError: naming wanted attributes that this variant doesn't give.
        """
        wanted = selected(wanted, [attribute.name for given in self.outputs.values() for attribute in given])
        rows = {
            task: [row for row, attribute in enumerate(given) if attribute.name in wanted]
            for task, given in self.outputs.items()
        }
        asked = {task: own if len(self.outputs[task]) > 1 else None for task, own in rows.items() if own}
        if not asked:
            return {}
        raw: dict[str, Tensor] = {}
        for task, output in self.tasks(self.visual(x), asked).items():
            given = self.outputs[task]
            if len(given) > 1:
                raw |= {given[row].name: value for row, value in zip(rows[task], output.unbind(dim=1), strict=True)}
            elif given[0].kind is Kind.MASK:
                raw[given[0].name] = F.interpolate(output, x.shape[2:], mode="bilinear", align_corners=False)
            else:
                raw[given[0].name] = output
        return raw


class Recognition(nn.Module):
    """The encoder and the recognition head on its last block."""

    def __init__(self, state_dict: StateDict) -> None:
        super().__init__()
        dimension, width = shape_of(state_dict, "recognition.head.2.weight")
        self.visual = VisionTransformer(state_dict, "visual.")
        self.recognition = nn.ModuleDict({"norm": nn.LayerNorm(width), "head": embedding_head(width, dimension)})

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised crops (N, 3, 112, 112) as (N, D) float32, not normalised."""
        tokens = self.visual(x)[-1].flatten(2).transpose(1, 2)
        return self.recognition["head"](self.recognition["norm"](tokens).mean(dim=1))


def build(state_dict: StateDict, variant: str, part: str) -> nn.Module:
    """Build a part of the variant that `state_dict` belongs to; widths and depths are read from its shapes.

    Raises:
        CheckpointMismatch: naming the variant of the weights if it's another one, or the keys that don't fit.
    """
    name = f"{_title(variant)} ({part})"
    if part == EMBEDDING:
        return load(Recognition(state_dict), state_dict, name)
    _refuse_other_variants(state_dict, variant)
    heads: dict[tuple[str, bool], type[nn.Module]] = {
        (VALUES, False): ValueTasks,
        (MAPS, False): MapTasks,
        (VALUES, True): NaiveValueTasks,
        (MAPS, True): NaiveMapTasks,
    }
    return load(Faceptor(state_dict, tasks_of(variant, part), heads[part, variant == "naive"]), state_dict, name)


def tasks_of(variant: str, part: str) -> tuple[str, ...]:
    """Return the tasks of a part of a variant, those preferred first."""
    return tuple(task for task in VARIANTS[variant] if task.partition("_")[0] in KINDS[part])


def variant_of(state_dict: StateDict) -> str | None:
    """Say which variant weights in our own key names belong to, or None if there is neither a decoder nor a head."""
    tasks = {key.rpartition(".")[2] for key in state_dict if ".query_feat." in key}
    if any(key.startswith("tasks.heads.") for key in state_dict):
        return "naive"
    if "tasks.decoder.input_proj.1.weight" in state_dict:
        return "layer-attention"
    if tasks:
        return "base" if tasks <= set(_BASE) else "full"
    return None


def interpret(raw: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Read the network's outputs as estimates by attribute name."""
    return {name: _estimate(_ATTRIBUTES[name], output) for name, output in raw.items()}


def _estimate(attribute: Attribute, output: Tensor) -> Estimate:
    if attribute is GENDER:  # CelebA's "Male"
        male = output.sigmoid()
        return category(GENDER, torch.stack([1 - male, male], dim=1), ("female", "male"))
    if attribute.kind is Kind.CATEGORY:
        return category(EXPRESSION, output.softmax(dim=1), EXPRESSION_LABELS)
    if attribute.kind is Kind.MASK:
        return mask(PARSING, output, PARSING_LABELS["parsing_celebam" if attribute is PARSING else attribute.name])
    if attribute.kind is Kind.YEARS:
        return _years(output)
    if attribute.kind is Kind.POINTS:
        peaks = output.sigmoid().amax(dim=(2, 3))
        return Estimate(expected_points(output) * output.shape[3] * MAP_SCALE - 0.5, confidence=peaks.mean(dim=1))
    return probability(output.sigmoid())


def _years(logits: Tensor) -> Estimate:
    """Read logits (N, 101) of the ages 0 to 100: the expectation over their sigmoids, made a distribution by their sum."""
    distribution = F.normalize(logits.sigmoid(), p=1, dim=1)
    ages = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    years = distribution @ ages
    near = (ages - years[:, None]).abs() <= AGE_MARGIN
    return Estimate(value=years, confidence=(distribution * near).sum(dim=1))


def expected_points(logits: Tensor) -> Tensor:
    """Return where each map (N, P, H, W) has its centre of mass, x and y in 0..1 of the picture: (N, P, 2)."""
    heat = logits.sigmoid()
    heat = heat / heat.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    y, x = (torch.arange(n, device=heat.device, dtype=heat.dtype) + 0.5 for n in heat.shape[2:])
    return torch.stack([(heat.sum(dim=2) @ x) / len(x), (heat.sum(dim=3) @ y) / len(y)], dim=2)


_ATTRIBUTES = {
    attribute.name: attribute for tasks in VARIANTS.values() for given in outputs(tasks).values() for attribute in given
}
_RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (  # released keys, ours
    (r"backbone_module\.visual\.(transformer\.)?", "visual."),
    (r"heads_module\.(interpreters\.feature_v2|heads\.recog)\.", "recognition."),
    (r"heads_module\.(interpreters\.)?", "tasks."),
    (r"\.value\.fc\.", ".value."),
    (r"\.map_v2\.", ".pixels."),
    (r"\.heads\.(age|biattr|affect)\.(conv|channel_attention|norm)\.", r".heads.\1.attention.\2."),
    (r"\.(query_feat|query_embed)\.(\w+)\.weight", r".\1.\2"),
    (r"\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.", r".layers.\1.cross_attn."),
    (r"\.transformer_self_attention_layers\.(\d+)\.self_attn\.", r".layers.\1.self_attn."),
    (r"\.transformer_(cross|self)_attention_layers\.(\d+)\.norm\.", r".layers.\2.\1_norm."),
    (r"\.transformer_ffn_layers\.(\d+)\.norm\.", r".layers.\1.ffn_norm."),
    (r"\.transformer_ffn_layers\.", ".layers."),
    (r"\.new_input_proj\.(\d)", lambda m: f".input_proj.{int(m[1]) + 1}"),
)
# Never used (CLIP's way out), twice there (the norm's parameters under `ln`), derived, or for training only.
_DROPPED = re.compile(r"visual\.(proj$|ln_post\.)|\.mask_map\.1\.ln\.|num_batches_tracked$|^losses_module\.")


def official(checkpoint: Mapping[str, Any], variant: str, part: str) -> dict[str, Tensor]:
    """Take a part of the network out of a released checkpoint, without identity classifier and optimiser.

    Raises:
        CheckpointMismatch: if it is none of Faceptor's, or of another variant, which the message names.
    """
    released = unwrap(checkpoint, "state_dict")
    own = {_own_key(key): tensor for key, tensor in released.items() if not _DROPPED.search(key)}
    if levels := [own.pop(key) for key in _LEVELS if key in own]:
        own["tasks.decoder.level_embed"] = torch.cat(levels)
    _refuse_other_variants(own, variant)
    heads = tuple(f"tasks.heads.{kind}." for kind in KINDS[part])
    kept = {
        VALUES: ("visual.", "tasks.decoder.", "tasks.value.", *heads),
        MAPS: ("visual.", "tasks.decoder.", "tasks.pixels.", *heads),
        EMBEDDING: ("visual.", "recognition."),
    }[part]
    tasks = tasks_of(variant, part)
    return {
        key: tensor
        for key, tensor in own.items()
        if key.startswith(kept) and not (".query_" in key and key.rpartition(".")[2] not in tasks)
    }


_LEVELS = ("tasks.decoder.level_embed.weight", "tasks.decoder.new_level_embed.weight")


def _own_key(key: str) -> str:
    for released, own in _RENAMED:
        key = re.sub(released, own, key)
    return key


def _refuse_other_variants(state_dict: StateDict, variant: str) -> None:
    found = variant_of(state_dict)
    if found is None:
        raise CheckpointMismatch(f"The weights are none of Faceptor's: {_title(variant)} was asked for.")
    if found != variant:
        raise CheckpointMismatch(
            f"The weights are those of {_title(found)}, but {_title(variant)} was asked for: "
            f"use the models called faceptor-{found}."
        )


def _title(variant: str) -> str:
    return f"Faceptor-{variant.title()}"


def _spec(variant: str, part: str) -> ModelSpec:
    suffix, gives = {
        VALUES: ("", "age, attributes, expression"),
        MAPS: ("-dense", "parsing, landmarks"),
        EMBEDDING: ("-embedding", "identity embedding, 512-D"),
    }[part]
    describes = part != EMBEDDING
    return ModelSpec(
        name=f"faceptor-{variant}{suffix}",
        role=Role.DESCRIBE if describes else Role.EMBED,
        title=f"{_title(variant)}: {gives}",
        licence="MIT (code); weights without a licence of their own, trained largely on sets for non-commercial research",
        source="https://github.com/lxq1000/Faceptor",
        paper="arXiv:2403.09500",
        build=partial(build, variant=variant, part=part),
        preprocess=_DENSE if part == MAPS else _ALIGNED,
        dimension=None if describes else 512,
        attributes=tuple(a for given in outputs(tasks_of(variant, part)).values() for a in given),
        interpret=interpret if describes else None,
        official=partial(official, variant=variant, part=part),
        notes="Trained on CelebA-HQ's pictures and on upright boxes of like scale." if part == MAPS else "",
    )


_ALIGNED = Preprocess(template=ARCFACE_112, color=Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3)
_DENSE = Preprocess(
    template=FFHQ_512,
    color=Color.RGB,
    mean=(0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255),
    std=(0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255),
)
SPECS = tuple(_spec(variant, part) for variant in VARIANTS for part in KINDS)
