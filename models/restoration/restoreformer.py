"""RestoreFormer and RestoreFormer++: blind face restoration by cross attention between a degraded face and a codebook.

Wang, Zhang, Chen, Wang, Luo, "RestoreFormer: High-Quality Blind Face Restoration from Undegraded Key-Value Pairs", CVPR 2022
(arXiv:2201.06374); Wang et al., "RestoreFormer++", TPAMI 2023 (arXiv:2308.07228).
Released checkpoints: RestoreFormer.ckpt, RestoreFormer++.ckpt (wzhouxiff/RestoreFormerPlusPlus, release v1.0.0, Apache-2.0).
RGB 512x512 in [-1, 1] in and out, the output unbounded. The released code aligns with facexlib, which lays grey beyond the
photo's border (`FACEXLIB_512`).

Both start from an auto-encoder of clean faces, whose codebook they keep: the HQ dictionary (v1) and the ROHQD (++).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.checkpoint import load, unwrap
from models.restoration.vq_autoencoder import GROUPS, Decoder, Encoder, Features, Quantised, VectorQuantiser
from models.spec import CheckpointMismatch, Color, ModelSpec, Preprocess, Role, StateDict
from models.template import FACEXLIB_512

TRAINED_HERE = "visage train restoration"  # source of the models that no release has


@dataclass(frozen=True)
class Architecture:
    """What the tensor shapes of a checkpoint tell. The defaults are the released size.

    `widths`: channels per level, highest resolution first; `blocks`: residual blocks per encoder level (the decoder has one
    more); `latent`: channels of the code; `codes`: entries of the codebook.
    """

    widths: tuple[int, ...] = (64, 128, 128, 256, 256, 512)
    blocks: int = 2
    latent: int = 256
    codes: int = 1024

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(width % GROUPS for width in self.widths):
            raise ValueError(
                f"widths {self.widths}: at least two levels are needed, each a multiple of {GROUPS} channels"
            )


@dataclass(frozen=True)
class Variant:
    """What no tensor shape tells: number of attention heads, and what the decoder's attention looks at.

    `levels`: how many of the lowest resolutions have attention in the decoder (1: 16x16; 2: 16x16 and 32x32 in the released
    size). `cross`: queries come from the degraded face; otherwise the network is the auto-encoder of the first stage.
    """

    title: str
    heads: int
    levels: int
    cross: bool


HQ_DICTIONARY = Variant("RestoreFormer's HQ dictionary", heads=1, levels=1, cross=False)
RESTORER = Variant("RestoreFormer", heads=8, levels=1, cross=True)
ROHQD = Variant("RestoreFormer++'s ROHQD", heads=4, levels=1, cross=False)
RESTORER_PLUS_PLUS = Variant("RestoreFormer++", heads=4, levels=2, cross=True)


class RestoreFormer(nn.Module):
    """The restorer, or with a dictionary's `variant` the auto-encoder that it starts from.

    Input (N, 3, H, W) RGB in [-1, 1], sides divisible by 2^(levels - 1); output the same shape, unbounded. The two halves,
    `encode` and `decode`, are apart for training, which needs the codebook loss between them.
    """

    def __init__(self, architecture: Architecture, variant: Variant) -> None:
        super().__init__()
        widths, latent = architecture.widths, architecture.latent
        self.architecture, self.variant = architecture, variant
        attends = range(len(widths) - variant.levels, len(widths))
        self.encoder = Encoder(widths, architecture.blocks, latent, variant.heads, keep=attends)
        self.quant_conv = nn.Conv2d(latent, latent, 1)
        self.quantize = VectorQuantiser(architecture.codes, latent)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.decoder = Decoder(widths, architecture.blocks + 1, latent, variant.heads, attends)

    def encode(self, faces: Tensor) -> tuple[Quantised, Features]:
        """Faces (N, 3, H, W) to codebook entries (N, latent, h, w) and the encoder's features.

        Raises ValueError for a size that the levels do not divide.
        """
        factor = 2 ** (len(self.architecture.widths) - 1)
        if faces.shape[2] % factor or faces.shape[3] % factor:
            raise ValueError(
                f"{self.variant.title} takes faces whose sides are multiples of {factor}, not {tuple(faces.shape)}"
            )
        latent, features = self.encoder(faces)
        return self.quantize(self.quant_conv(latent)), features

    def decode(self, vectors: Tensor, features: Features) -> Tensor:
        """Codebook entries (N, latent, h, w) to faces (N, 3, H, W); a dictionary ignores `features`."""
        return self.decoder(self.post_quant_conv(vectors), features if self.variant.cross else None)

    def forward(self, faces: Tensor) -> Tensor:
        quantised, features = self.encode(faces)
        return self.decode(quantised.vectors, features)


def architecture_of(state_dict: StateDict, title: str) -> Architecture:
    """Read the hyper-parameters from tensor shapes.

    Raises:
        CheckpointMismatch: if `state_dict` does not have the tensors that tell them, or impossible shapes.
    """
    levels = {
        int(m[1]) for key in state_dict if (m := re.match(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight$", key))
    }
    blocks = {
        int(m[1]) for key in state_dict if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight$", key))
    }
    try:
        codes, latent = state_dict["quantize.embedding.weight"].shape
        widths = tuple(state_dict[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(len(levels)))
        return Architecture(widths, len(blocks), latent, codes)
    except KeyError as missing:
        raise CheckpointMismatch(
            f"The weights do not fit {title}: {missing} is missing. Is this the checkpoint of another model?"
        ) from None
    except ValueError as impossible:
        raise CheckpointMismatch(f"The weights do not fit {title}: {impossible}.") from None


def build(state_dict: StateDict, variant: Variant) -> RestoreFormer:
    """Build `variant`, its size read from the tensor shapes.

    The number of heads leaves no trace in a checkpoint, and v1's dictionary has the keys and shapes of v1's restorer: nothing
    but the caller knows which of the two a file holds.

    Raises:
        CheckpointMismatch: naming the keys, for the weights of another network.
    """
    return load(RestoreFormer(architecture_of(state_dict, variant.title), variant), state_dict, variant.title)


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a released checkpoint, or the repackaged RestoreFormer.pth of GFPGAN's release v1.3.4.

    The weights lie under `state_dict` with the prefix `vqvae.` (RestoreFormerPlusPlus), or under `params_ema` or `params`
    without one (GFPGAN). Losses' networks, the optimiser and the codebook's usage counter are left out.
    """
    return {
        key.removeprefix("vqvae."): value
        for key, value in unwrap(checkpoint, "state_dict", "params_ema", "params").items()
        if not key.startswith("loss.") and not key.endswith("quantize.utility_counter")
    }


MINUS_ONE_TO_ONE = Preprocess(template=FACEXLIB_512, color=Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3)

RESTOREFORMER = ModelSpec(
    name="restoreformer",
    role=Role.RESTORE,
    title="RestoreFormer",
    licence="Apache-2.0 (code; nothing separate is said on the weights, which were trained on FFHQ, CC BY-NC-SA 4.0)",
    source="https://github.com/wzhouxiff/RestoreFormerPlusPlus/releases/tag/v1.0.0",
    paper="arXiv:2201.06374",
    build=partial(build, variant=RESTORER),
    preprocess=MINUS_ONE_TO_ONE,
    official=official,
    notes="RestoreFormer.ckpt, 290,861,237 bytes, "
    "sha256 4a193c716bc27cc0533d1b9307100c671e7b584ffa3ba6648182fea4b3228dff (third party). "
    "Its HQ dictionary has the same keys and shapes: it loads, and restores nothing.",
)
RESTOREFORMER_PLUS_PLUS = ModelSpec(
    name="restoreformer++",
    role=Role.RESTORE,
    title="RestoreFormer++",
    licence="Apache-2.0 (code; nothing separate is said on the weights, which were trained on FFHQ, CC BY-NC-SA 4.0)",
    source="https://github.com/wzhouxiff/RestoreFormerPlusPlus/releases/tag/v1.0.0",
    paper="arXiv:2308.07228",
    build=partial(build, variant=RESTORER_PLUS_PLUS),
    preprocess=MINUS_ONE_TO_ONE,
    official=official,
    notes="RestoreFormer++.ckpt, about 293.9 MB (expected, not verified).",
)


def _trained_here(released: ModelSpec, size: int) -> ModelSpec:
    """A restorer at another size than the released one: 'visage train restoration' makes its weights."""
    template = FACEXLIB_512.scaled(f"facexlib-{size}", size)
    return replace(
        released,
        name=f"{released.name}-{size}",
        title=f"{released.title} at {size} px",
        licence="yours: as far as the pictures that it was trained on allow",
        source=TRAINED_HERE,
        preprocess=replace(MINUS_ONE_TO_ONE, template=template),
        official=dict,
        notes="There is no released checkpoint: train it.",
    )


RELEASED = (RESTOREFORMER, RESTOREFORMER_PLUS_PLUS)
SPECS = (*RELEASED, *(_trained_here(released, size) for released in RELEASED for size in (64, 128, 256)))
