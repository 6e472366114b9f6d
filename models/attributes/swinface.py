"""SwinFace: identity, age, expression and CelebA's forty attributes from one Swin-T backbone.

Qin et al., "SwinFace: A Multi-task Transformer for Face Recognition, Expression Recognition, Age Estimation and Attribute
Estimation", TCSVT 2023 (arXiv:2308.11509). Released checkpoint: checkpoint_step_79999_gpu_0.pt (code MIT; trained on sets
for non-commercial research). Colour crops of 112x112 in ArcFace's alignment.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.attributes.heads import embedding_head
from models.attributes.mlca import multi_level_channel_attention, task_subnet
from models.attributes.swin import patch_embedding, swin_layers
from models.checkpoint import load, shape_of
from models.spec import EMBEDDING, CheckpointMismatch, Color, Estimate, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112
from models.vocabulary import ATTRIBUTES, EXPRESSION, GENDER, category, probability, selected, without_confidence

# What each of the eleven subnets gives, in the order of the released output layers (Table I).
SUBNETS: tuple[tuple[str, ...], ...] = (
    ("gender",),
    ("age", "young"),
    ("expression", "smiling"),
    ("attractive", "blurry", "chubby", "heavy_makeup", "oval_face", "pale_skin"),
    (
        "bald", "bangs", "black_hair", "blond_hair", "brown_hair", "gray_hair", "receding_hairline", "straight_hair",
        "wavy_hair", "wearing_hat",
    ),
    ("arched_eyebrows", "bags_under_eyes", "bushy_eyebrows", "eyeglasses", "narrow_eyes"),
    ("big_nose", "pointy_nose"),
    ("high_cheekbones", "rosy_cheeks", "wearing_earrings", "sideburns"),
    ("five_o_clock_shadow", "big_lips", "mouth_slightly_open", "mustache", "wearing_lipstick", "no_beard"),
    ("double_chin", "goatee"),
    ("wearing_necklace", "wearing_necktie"),
)  # fmt: skip
OUTPUTS: tuple[str, ...] = tuple(name for subnet in SUBNETS for name in subnet)

GENDER_LABELS = ("female", "male")
EXPRESSION_LABELS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # RAF-DB's order


class Backbone(nn.Module):
    """Swin-T with patches of 2 pixels: 112x112 gives 56x56 tokens."""

    def __init__(self, state_dict: StateDict, prefix: str) -> None:
        super().__init__()
        dimension, width = shape_of(state_dict, f"{prefix}feature.2.weight")
        self.patch_embed = patch_embedding(state_dict, f"{prefix}patch_embed.")
        self.layers = swin_layers(state_dict, f"{prefix}layers.")
        self.norm = nn.LayerNorm(width)
        self.feature = embedding_head(width, dimension)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return the maps after every layer (after merging), the last one before the final norm: (N, C_i, H_i, W_i)."""
        x = self.patch_embed(x)
        levels = []
        for layer in self.layers:
            _, x = layer(x)
            levels.append(x.permute(0, 3, 1, 2))
        return levels

    def embed(self, level: Tensor) -> Tensor:
        """Return the embedding (N, D), not normalised, of the last level."""
        return self.feature(self.norm(level.permute(0, 2, 3, 1)).mean(dim=(1, 2)))

    def forward(self, x: Tensor) -> Tensor:
        """Embed normalised crops (N, 3, 112, 112) as (N, D) float32, not normalised."""
        return self.embed(self.levels(x)[-1])


class SwinFace(nn.Module):
    """The backbone and eleven subnets that each attend to its levels (Fig. 2)."""

    def __init__(self, state_dict: StateDict) -> None:
        super().__init__()
        widths = [shape_of(state_dict, f"tss.{i}.0.weight")[0] for i in range(len(SUBNETS))]
        self.backbone = Backbone(state_dict, "backbone.")
        self.fam = nn.ModuleList(multi_level_channel_attention(state_dict, f"fam.{i}.") for i in range(len(SUBNETS)))
        self.tss = nn.ModuleList(task_subnet(width) for width in widths)
        self.om = nn.ModuleList(
            nn.Linear(width, {"age": 1, "expression": len(EXPRESSION_LABELS)}.get(name, 2))
            for width, names in zip(widths, SUBNETS, strict=True)
            for name in names
        )

    def forward(self, x: Tensor, wanted: frozenset[str] | None = None) -> dict[str, Tensor]:
        """Return the wanted outputs (all if None) of normalised crops (N, 3, 112, 112), by name, and run nothing else.

        `age` (N, 1) in years, `expression` (N, 7) and the binary attributes (N, 2) as logits, `embedding` (N, 512).

        Raises:
            ValueError: naming wanted attributes that SwinFace doesn't give.
        """
        wanted = selected(wanted, (*OUTPUTS, EMBEDDING))
        levels = self.backbone.levels(x)
        raw = {EMBEDDING: self.backbone.embed(levels[-1])} if EMBEDDING in wanted else {}
        size = levels[-1].shape[2:]
        pooled = [F.avg_pool2d(level, level.shape[2] // size[0]) for level in levels]
        for names, attention, subnet in zip(SUBNETS, self.fam, self.tss, strict=True):
            if wanted.isdisjoint(names):
                continue
            feature = subnet(attention(pooled))
            raw |= {name: self.om[OUTPUTS.index(name)](feature) for name in names if name in wanted}
        return raw


def build(state_dict: StateDict) -> SwinFace:
    """Build the network that `state_dict` belongs to; widths and depths are read from its shapes.

    Raises:
        CheckpointMismatch: naming the keys that don't fit.
    """
    return load(SwinFace(state_dict), state_dict, "SwinFace")


def build_embedding(state_dict: StateDict) -> Backbone:
    """Build the backbone alone, for recognition.

    Raises:
        CheckpointMismatch: naming the keys that don't fit.
    """
    return load(Backbone(state_dict, ""), state_dict, "SwinFace's backbone")


def interpret(raw: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Read the network's outputs as estimates by attribute name. The age comes without a confidence."""
    estimates = {}
    for name, output in raw.items():
        if name == "age":
            estimates[name] = without_confidence(output.squeeze(1))
        elif name == "expression":
            estimates[name] = category(EXPRESSION, output.softmax(dim=1), EXPRESSION_LABELS)
        elif name == "gender":
            estimates[name] = category(GENDER, output.softmax(dim=1), GENDER_LABELS)
        elif name != EMBEDDING:
            estimates[name] = probability(output.softmax(dim=1)[:, 1])
    return estimates


_RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {  # parts of the checkpoint: released words, ours
    "backbone": (),
    "fam": (("nets.", ""), ("conv.convs.", "conv.")),
    "tss": (("nets.", ""), ("feature.", "")),
    "om": (("output_fcs.", ""),),
}


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the four networks out of the released training checkpoint, without classifier and optimiser.

    Raises:
        CheckpointMismatch: if one of them isn't there.
    """
    return {
        f"{part}.{_own_key(part, key)}": tensor
        for part in _RENAMED
        for key, tensor in _part(checkpoint, part).items()
        if not _derived(part, key)
    }


def official_embedding(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the backbone alone out of the released training checkpoint.

    Raises:
        CheckpointMismatch: if it isn't there.
    """
    return {k: tensor for k, tensor in _part(checkpoint, "backbone").items() if not _derived("backbone", k)}


def _part(checkpoint: Mapping[str, Any], part: str) -> Mapping[str, Tensor]:
    entry = f"state_dict_{part}"
    if not isinstance(checkpoint.get(entry), Mapping):
        held = ", ".join(str(key) for key in list(checkpoint)[:5]) or "nothing"
        raise CheckpointMismatch(
            f"SwinFace's released checkpoint has an entry {entry!r}; this file has {held}. "
            "Name the file checkpoint_step_79999_gpu_0.pt as it was released."
        )
    return checkpoint[entry]


def _own_key(part: str, key: str) -> str:
    for released, own in _RENAMED[part]:
        key = key.replace(released, own)
    return key


def _derived(part: str, key: str) -> bool:
    """Say whether a tensor follows from the architecture (masks, indices, counters) or is never used (the head)."""
    return key.endswith(("relative_position_index", "attn_mask", "num_batches_tracked")) or (
        part == "backbone" and key.startswith("head.")
    )


_PREPROCESS = Preprocess(template=ARCFACE_112, color=Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3)
_LICENCE = "MIT (code); weights without a licence of their own, trained on sets for non-commercial research"
_SOURCE = "https://github.com/lxq1000/SwinFace"
_PAPER = "arXiv:2308.11509"

SWINFACE = ModelSpec(
    name="swinface",
    role=Role.DESCRIBE,
    title="SwinFace: age, gender, expression, CelebA's attributes",
    licence=_LICENCE,
    source=_SOURCE,
    paper=_PAPER,
    build=build,
    preprocess=_PREPROCESS,
    attributes=tuple(ATTRIBUTES[name] for name in OUTPUTS),
    interpret=interpret,
    official=official,
    embeds="swinface-embedding",
    notes="Gives the embedding of 'swinface-embedding' in the same forward, where that is the recognition model at work.",
)

SWINFACE_EMBEDDING = ModelSpec(
    name="swinface-embedding",
    role=Role.EMBED,
    title="SwinFace: identity embedding, 512-D",
    licence=_LICENCE,
    source=_SOURCE,
    paper=_PAPER,
    build=build_embedding,
    preprocess=_PREPROCESS,
    dimension=512,
    official=official_embedding,
    notes="The backbone of 'swinface' and the same checkpoint. Official protocol: add the embedding of the mirror image.",
)

SPECS = (SWINFACE, SWINFACE_EMBEDDING)
