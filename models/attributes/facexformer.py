"""FaceXFormer: parsing, landmarks, head pose, attributes, occlusion, age group, gender and race from one network.

Narayan, VS, Chellappa, Patel, "FaceXFormer: A Unified Transformer for Facial Analysis", ICCV 2025 (arXiv:2403.12960).
Released checkpoint: ckpts/model.pt (code MIT; trained mostly on sets for non-commercial research). Upright crops of 224x224
around the face's box. The decoder is Segment Anything's two-way transformer with one token for each task.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attributes.heads import ChannelNorm, perceptron
from models.attributes.swin import patch_embedding, swin_layers
from models.checkpoint import load, shape_of, unwrap
from models.spec import CheckpointMismatch, Color, Estimate, ModelSpec, Preprocess, Role, StateDict
from models.template import BoxTemplate
from models.vocabulary import (
    AGE_GROUP,
    CELEBA,
    GENDER,
    LANDMARKS_68,
    OCCLUSION_29,
    PARSING,
    PITCH,
    RACE,
    ROLL,
    YAW,
    category,
    mask,
    probability,
    second_opinion,
    selected,
    without_confidence,
)

SIZE = 224  # pixels; the decoder's position code spans the crop whatever its size, the released weights know this one
GENDER_CELEBA = second_opinion(GENDER, "celeba")  # the attribute head's "Male", beside the gender head

# One token and one head for each task, in the released order (Section 3.2). A head of several attributes gives one number
# for each, in this order; a head of one attribute gives all its numbers to it.
HEADS = {
    "landmarks": (LANDMARKS_68,),
    "pose": (PITCH, YAW, ROLL),
    "attribute": tuple(GENDER_CELEBA if attribute is GENDER else attribute for attribute in CELEBA),
    "visibility": (OCCLUSION_29,),
    "age": (AGE_GROUP,),
    "gender": (GENDER,),
    "race": (RACE,),
}
ATTRIBUTES = (PARSING, *(attribute for attributes in HEADS.values() for attribute in attributes))

AGE_GROUP_LABELS = ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
GENDER_LABELS = ("male", "female")
GENDER_CELEBA_LABELS = ("female", "male")  # not Male, Male
RACE_LABELS = ("white", "black", "indian", "asian", "other")
# LaPa's order, inferred from the colours of the official demo.
PARSING_LABELS = (
    "background", "skin", "image_left_brow", "image_right_brow", "image_left_eye", "image_right_eye", "nose", "upper_lip",
    "inner_mouth", "lower_lip", "hair",
)  # fmt: skip


class Attention(nn.Module):
    """Multi-head attention that works at a width of its own: queries (N, Q, C), keys and values (N, K, C) to (N, Q, C)."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Tokens attend to each other and to the picture, then the picture to the tokens (Fig. 3)."""

    def __init__(self, width: int, inner: int, hidden: int, heads: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width, heads)
        self.cross_attn_token_to_image = Attention(width, inner, heads)
        self.cross_attn_image_to_token = Attention(width, inner, heads)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(width, hidden), "lin2": nn.Linear(hidden, width)})
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, origin: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens (N, T, C) and picture (N, HW, C); `origin` are the tokens' positions, `position` the picture's."""
        if self.first:  # the tokens are still their own positions: nothing to add, and nothing is kept
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            placed = tokens + origin
            tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + origin, image + position, image))
        tokens = self.norm3(tokens + self.mlp["lin2"](self.mlp["lin1"](tokens).relu()))
        image = self.norm4(image + self.cross_attn_image_to_token(image + position, tokens + origin, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """The decoder's layers and a last look of the tokens at the picture."""

    def __init__(self, width: int, inner: int, hidden: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(width, inner, hidden, heads, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(width, inner, heads)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the tokens (N, T, C) have read and what the picture (N, HW, C) has become."""
        origin = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, origin, position)
        read = self.final_attn_token_to_image(tokens + origin, image + position, image)
        return self.norm_final_attn(tokens + read), image


class FaceXFormer(nn.Module):
    """Swin-B, fusion of its four levels, two-way decoder, one head for each task (Fig. 2)."""

    def __init__(self, state_dict: StateDict) -> None:
        super().__init__()
        self.patch_embed = patch_embedding(state_dict, "patch_embed.")
        self.layers = swin_layers(state_dict, "layers.")
        width, joined, _, _ = shape_of(state_dict, "linear_fuse.weight")
        self.linear_c = nn.ModuleList(
            nn.Linear(shape_of(state_dict, f"linear_c.{i}.weight")[1], width) for i in range(len(self.layers))
        )
        self.linear_fuse = nn.Conv2d(joined, width, 1, bias=False)
        self.frequencies = nn.Parameter(torch.zeros(shape_of(state_dict, "frequencies")))
        tokens = shape_of(state_dict, "tokens")
        self.tokens = nn.Parameter(torch.zeros(tokens))
        depth = len({m[0] for key in state_dict if (m := re.match(r"transformer\.layers\.\d+", key))})
        inner = shape_of(state_dict, "transformer.final_attn_token_to_image.q_proj.weight")[0]
        hidden = shape_of(state_dict, "transformer.layers.0.mlp.lin1.weight")[0]
        self.transformer = TwoWayTransformer(width, inner, hidden, heads=8, depth=depth)
        self.heads = nn.ModuleDict({name: perceptron(state_dict, f"heads.{name}.") for name in HEADS})
        fine, finest = (shape_of(state_dict, f"output_upscaling.{i}.weight")[1] for i in (0, 3))
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, fine, 2, stride=2),
            ChannelNorm(fine),
            nn.GELU(),
            nn.ConvTranspose2d(fine, finest, 2, stride=2),
            nn.GELU(),
        )
        self.hypernetwork = perceptron(state_dict, "hypernetwork.")

    def encode(self, x: Tensor) -> Tensor:
        """Fuse the four levels of the backbone: (N, 3, 224, 224) to (N, 256, 56, 56)."""
        x = self.patch_embed(x)
        projected: list[Tensor] = []
        for layer, linear in zip(self.layers, self.linear_c, strict=True):
            level, x = layer(x)
            projected.append(linear(level).permute(0, 3, 1, 2))
        size = projected[0].shape[2:]
        levels = [F.interpolate(p, size, mode="bilinear", align_corners=False) for p in projected]
        return self.linear_fuse(torch.cat(levels[::-1], dim=1))  # deepest level first

    def position(self, h: int, w: int) -> Tensor:
        """Return random Fourier features of the pixel centres, (C, h, w)."""
        y, x = ((torch.arange(n, device=self.frequencies.device) + 0.5) / n * 2 - 1 for n in (h, w))
        centres = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=2)
        angles = 2 * math.pi * (centres.to(self.frequencies.dtype) @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=2).permute(2, 0, 1)

    def forward(self, x: Tensor, wanted: frozenset[str] | None = None) -> dict[str, Tensor]:
        """Return the wanted outputs (all if None) of normalised crops (N, 3, 224, 224) by attribute name; run no other head.

        `landmarks_68` (N, 136) interleaved x, y in -1..1; pitch, yaw and roll (N,) in radians; `occlusion_29` (N, 29) and
        the binary attributes (N,) as logits; the categories (N, classes) and `parsing` (N, 11, 224, 224) as logits.

        Raises:
            ValueError: naming wanted attributes that FaceXFormer doesn't give.
        """
        wanted = selected(wanted, [attribute.name for attribute in ATTRIBUTES])
        image = self.encode(x)
        position = self.position(*image.shape[2:]).flatten(1).T
        tokens, pixels = self.transformer(
            self.tokens.expand(x.shape[0], -1, -1), image.flatten(2).transpose(1, 2), position
        )
        raw = {}
        for token, (name, attributes) in enumerate(HEADS.items()):
            rows = [i for i, attribute in enumerate(attributes) if attribute.name in wanted]
            if rows and len(attributes) == 1:
                raw[attributes[0].name] = self.heads[name](tokens[:, token])
            elif rows:
                values = self.heads[name](tokens[:, token], rows).unbind(dim=1)
                raw |= {attributes[i].name: value for i, value in zip(rows, values, strict=True)}
        if PARSING.name in wanted:
            raw[PARSING.name] = self.parse(tokens[:, len(HEADS) :], pixels.transpose(1, 2).view_as(image))
        return raw

    def parse(self, mask_tokens: Tensor, image: Tensor) -> Tensor:
        """Return logits (N, classes, 4H, 4W) of mask tokens (N, classes, C) and the decoded picture (N, C, H, W)."""
        return torch.einsum("nkc,nchw->nkhw", self.hypernetwork(mask_tokens), self.output_upscaling(image))


def build(state_dict: StateDict) -> FaceXFormer:
    """Build the network that `state_dict` belongs to; widths and depths are read from its shapes.

    Raises:
        CheckpointMismatch: naming the keys that don't fit.
    """
    return load(FaceXFormer(state_dict), state_dict, "FaceXFormer")


def interpret(raw: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Read the network's outputs as estimates by attribute name. Landmarks and pose come without a confidence."""
    return {name: _estimate(name, output) for name, output in raw.items()}


def _estimate(name: str, output: Tensor) -> Estimate:
    if name == LANDMARKS_68.name:
        return without_confidence(((output.unflatten(1, (-1, 2)) + 1) * SIZE - 1) / 2)
    if name in {PITCH.name, YAW.name, ROLL.name}:  # signs as the official demo draws them: the vocabulary's
        return without_confidence(output.rad2deg())
    if name == PARSING.name:
        return mask(PARSING, output, PARSING_LABELS)
    if name == GENDER_CELEBA.name:
        male = output.sigmoid()
        return category(GENDER, torch.stack([1 - male, male], dim=1), GENDER_CELEBA_LABELS)
    for attribute, labels in ((AGE_GROUP, AGE_GROUP_LABELS), (GENDER, GENDER_LABELS), (RACE, RACE_LABELS)):
        if name == attribute.name:
            return category(attribute, output.softmax(dim=1), labels)
    return probability(output.sigmoid())  # the binary attributes; for occlusion, 1 means hidden


_RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (  # released keys, ours
    (r"backbone\.0\.0\.0\.", "patch_embed.proj."),
    (r"backbone\.0\.0\.2\.", "patch_embed.norm."),
    (r"backbone\.0\.([1357])\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"backbone\.0\.([246])\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "frequencies"),
    (r"(linear_c\.\d)\.proj\.", r"\1."),
    (r"face_decoder\.(\w+)_prediction_head\.", r"heads.\1."),
    (r"face_decoder\.output_hypernetwork_mlps\.", "hypernetwork."),
    (r"face_decoder\.", ""),
)


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the network out of the released file, without the backbone's final norm (never used) and the optimiser.

    Raises:
        CheckpointMismatch: if it isn't there.
    """
    own = {
        _own_key(key): tensor
        for key, tensor in unwrap(checkpoint, "state_dict_backbone").items()
        if not (key.startswith("backbone.1.") or key.endswith("relative_position_index"))
    }
    tokens = [f"{name}_token.weight" for name in HEADS] + ["mask_tokens.weight"]
    if missing := [key for key in tokens if key not in own]:
        raise CheckpointMismatch(
            f"FaceXFormer's decoder has the tokens {', '.join(missing)}; this file has not. "
            "Name the file ckpts/model.pt as it was released."
        )
    own["tokens"] = torch.cat([own.pop(key) for key in tokens])
    return own


def _own_key(key: str) -> str:
    for released, own in _RENAMED:
        key = re.sub(released, own, key)
    return key


FACEXFORMER = ModelSpec(
    name="facexformer",
    role=Role.DESCRIBE,
    title="FaceXFormer: parsing, landmarks, pose, attributes, occlusion, age group, gender, race",
    licence="MIT (code); weights without a licence of their own, trained mostly on sets for non-commercial research",
    source="https://github.com/Kartik-3004/facexformer",
    paper="arXiv:2403.12960",
    build=build,
    preprocess=Preprocess(
        template=BoxTemplate("box-224", SIZE, margin=0.25, square=False),
        color=Color.RGB,
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
    ),
    attributes=ATTRIBUTES,
    interpret=interpret,
    official=official,
    notes="Parsing classes follow LaPa (inferred from the demo's palette): check them on real faces with the real weights.",
)
