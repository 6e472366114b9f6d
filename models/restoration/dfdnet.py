"""DFDNet: blind face restoration by features of facial components from dictionaries of clean faces.

Li, Chen, Zhou, Lin, Zuo, Zhang, "Blind Face Restoration via Deep Multi-scale Component Dictionaries", ECCV 2020
(arXiv:2008.00418). Released checkpoint: latest_net_G.pth and DictionaryCenter512/*.npy (CC BY-NC-SA 4.0).
RGB 512x512 in [-1, 1] in and out, with the boxes of both eyes, nose and mouth (models.restoration.components).

Two things differ from the released form and change no result: the spectral normalisation is divided out of the weights once
instead of at every call, and dictionary entries are kept normalised, so that matching is one matrix product.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import load, unwrap
from models.restoration.components import DFDNET_512, PARTS, boxes_from_5
from models.spec import CheckpointMismatch, Color, ModelSpec, Preprocess, Role, StateDict

SIZE = DFDNET_512.size
CHANNELS = {256: 128, 128: 256, 64: 512, 32: 512}  # scale (side of a feature map): its channels
PART_SIZES = {
    "left_eye": 80,
    "right_eye": 80,
    "nose": 50,
    "mouth": 110,
}  # px of the crop that a dictionary entry stands for
SHORT = {"left_eye": "le", "right_eye": "re", "nose": "no", "mouth": "mo"}  # as in the released checkpoint's keys
ENTRIES = {  # shape of an entry of every part and scale
    f"{part}_{scale}": (CHANNELS[scale], pixels * scale // SIZE, pixels * scale // SIZE)
    for part, pixels in PART_SIZES.items()
    for scale in CHANNELS
}
POOL = 0
VGG_19 = (64, 64, POOL, 128, 128, POOL, *[256] * 4, POOL, *[512] * 4, POOL, *[512] * 4)  # widths of the convolutions
CUTS = (0, 9, 18, 27, 35)  # positions in VGG-19 between the scales: after relu2_2, relu3_4, relu4_4 and conv5_4
BINOMIAL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
SLOPE = 0.2  # of every leaky ReLU


def mean_of(x: Tensor) -> Tensor:
    return x.mean(dim=(-2, -1), keepdim=True)


def deviation_of(x: Tensor) -> Tensor:
    return torch.sqrt(x.var(dim=(-2, -1), keepdim=True) + 1e-5)


def convolution(channels: int, out_channels: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=dilation, dilation=dilation)


def two_convolutions(channels: int, out_channels: int, dilation: int = 1) -> list[nn.Module]:
    first, second = convolution(channels, out_channels, dilation), convolution(out_channels, out_channels, dilation)
    return [first, nn.LeakyReLU(SLOPE), second]


class VGGFeatures(nn.Module):
    """Faces (N, 3, 512, 512) in [-1, 1] to VGG-19 features by scale: relu2_2, relu3_4, relu4_4, conv5_4.

    The last is taken before its ReLU, the others after theirs: what the released weights were trained with.
    """

    RGB_mean: Tensor
    RGB_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("RGB_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("RGB_std", torch.ones(1, 3, 1, 1))
        layers: list[nn.Module] = []
        channels = 3
        for width in VGG_19:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [convolution(channels, width), nn.ReLU()]
                channels = width
        named = [(str(position), layer) for position, layer in enumerate(layers)]  # keys tell the position in VGG-19
        self.features = nn.ModuleList(nn.Sequential(OrderedDict(named[a:b])) for a, b in pairwise(CUTS))

    def forward(self, faces: Tensor) -> dict[int, Tensor]:
        x = ((faces + 1) / 2 - self.RGB_mean) / self.RGB_std
        found = {}
        for scale, piece in zip(CHANNELS, self.features, strict=True):
            x = found[scale] = piece(x)
        return found


class ComponentDictionary(nn.Module):
    """K entries (K, C, n, n) per part and scale, every channel of every entry with mean 0 and deviation 1 over its pixels."""

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, values in entries.items():
            self.register_buffer(name, values)

    def scores(self, features: Tensor, name: str) -> Tensor:
        """Inner products (N, K) of features (N, C, n, n) with every entry in their style (Section 3.3, eq. 2 and 3).

        The product of F with mean + deviation * D splits into deviation * F times D, and a part common to all entries.
        """
        entries = self.get_buffer(name)
        common = (mean_of(features) * features).sum(dim=(1, 2, 3))
        return F.linear((features * deviation_of(features)).flatten(1), entries.flatten(1)) + common[:, None]

    def forward(self, features: Tensor, name: str) -> Tensor:
        """The best entry for features (N, C, h, w) of any size, in their style (adaptive instance normalisation, eq. 2)."""
        entries = self.get_buffer(name)
        best = self.scores(features, name).argmax(dim=1)
        return entries[best] * deviation_of(features) + mean_of(features)

    def side(self, name: str) -> int:
        return self.get_buffer(name).shape[-1]


class MultiDilation(nn.Module):
    """Four dilated branches beside a shortcut, (N, C, h, w) in and out: context at the coarsest scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(*two_convolutions(channels, channels, dilation)) for dilation in (4, 3, 2, 1)
        )
        self.convi = convolution(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x))
        return self.convi(torch.cat(branches, dim=1)) + x


class Blur(nn.Module):
    """Binomial 3x3 blur of every channel, with zeros beyond the border."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", BINOMIAL.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


class StyleUp(nn.Module):
    """Spatial feature transform by the updated features, then twice the resolution (Section 3.4).

    Input (N, C, h, w) and style of the same shape, output (N, D, 2h, 2w).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        activation = nn.LeakyReLU(SLOPE)
        self.conv1 = nn.Sequential(
            Blur(), convolution(channels, out_channels), activation, activation
        )  # twice, as released
        self.ScaleModel1 = nn.Sequential(*two_convolutions(channels, out_channels))
        self.ShiftModel1 = nn.Sequential(*two_convolutions(channels, out_channels), nn.Sigmoid())
        double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.convup = nn.Sequential(double, convolution(out_channels, out_channels), nn.LeakyReLU(SLOPE))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.convup(self.conv1(x) * self.ScaleModel1(style) + self.ShiftModel1(style))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, (N, C, h, w) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Model = nn.Sequential(*two_convolutions(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.Model(x)


class DFDNet(nn.Module):
    """Faces (N, 3, 512, 512) RGB in [-1, 1] and boxes (N, 4, 4) int64 of PARTS to restored faces of the same shape and range.

    A box is x1, y1, x2, y2 in crop pixels, ends exclusive. `entries` is the normalised dictionary, used without copying.
    Raises ValueError for another size, and for boxes that leave the crop or span no cell of the coarsest features.
    """

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.VggExtract = VGGFeatures()
        self.dictionary = ComponentDictionary(entries)
        for part in PARTS:
            for scale, channels in CHANNELS.items():
                self.add_module(f"{SHORT[part]}_{scale}", nn.Sequential(*two_convolutions(channels, channels)))
        self.MSDilate = MultiDilation(512)
        self.up0, self.up1, self.up2, self.up3 = (
            StyleUp(a, b) for a, b in ((512, 512), (512, 256), (256, 128), (128, 64))
        )
        refine = (convolution(64, 64), nn.LeakyReLU(SLOPE), Residual(64), Residual(64), convolution(64, 3), nn.Tanh())
        self.up4 = nn.Sequential(*refine)

    def forward(self, faces: Tensor, boxes: Tensor) -> Tensor:
        _check(faces, boxes)
        features = self.VggExtract(faces)
        x = self.MSDilate(features[32])
        for scale, up in zip(reversed(CHANNELS), (self.up0, self.up1, self.up2, self.up3), strict=True):
            x = up(x, self.updated(features[scale], boxes, scale))
        return self.up4(x)

    def updated(self, features: Tensor, boxes: Tensor, scale: int) -> Tensor:
        """Features (N, C, scale, scale) with every component moved towards its dictionary entry (Section 3.3, eq. 4).

        Every part reads the original features; where boxes overlap, the later part's result stays.
        """
        updated = features.clone()
        cells = boxes.div(SIZE // scale, rounding_mode="floor").tolist()
        for i, part in enumerate(PARTS):
            name, confidence = f"{part}_{scale}", self.get_submodule(f"{SHORT[part]}_{scale}")
            slices = [
                (n, slice(None), slice(y1, y2), slice(x1, x2)) for n, (x1, y1, x2, y2) in enumerate(b[i] for b in cells)
            ]
            crops = [features[where][None] for where in slices]
            side = self.dictionary.side(name)
            entries = self.dictionary(torch.cat([F.interpolate(c, (side, side), mode="bilinear") for c in crops]), name)
            for where, crop, entry in zip(slices, crops, entries, strict=True):
                swapped = F.interpolate(entry[None], crop.shape[-2:], mode="nearest")
                updated[where] = (confidence(swapped - crop) * swapped + crop)[0]
        return updated


def _check(faces: Tensor, boxes: Tensor) -> None:
    count = len(faces)
    if faces.shape != (count, 3, SIZE, SIZE) or boxes.shape != (count, len(PARTS), 4):
        raise ValueError(
            f"DFDNet takes faces (N, 3, {SIZE}, {SIZE}) and boxes (N, {len(PARTS)}, 4), "
            f"not {tuple(faces.shape)} and {tuple(boxes.shape)}"
        )
    cells = boxes.div(SIZE // min(CHANNELS), rounding_mode="floor")
    inside = ((boxes >= 0) & (boxes <= SIZE)).all(dim=2) & (cells[..., 2:] > cells[..., :2]).all(dim=2)
    if not inside.all():
        n, part = (~inside).nonzero()[0].tolist()
        raise ValueError(
            f"the {PARTS[part].replace('_', ' ')} of face {n} has the box {boxes[n, part].tolist()}, which leaves the "
            f"{SIZE} px crop or is too small: the face cannot be restored by DFDNet"
        )


def build(state_dict: StateDict) -> DFDNet:
    """Build DFDNet; the number of dictionary entries is read from their shapes.

    Raises:
        CheckpointMismatch: naming the keys, for another network, and if the dictionary is absent.
    """
    entries = {name: state_dict[f"dictionary.{name}"] for name in ENTRIES if f"dictionary.{name}" in state_dict}
    if lacking := sorted(ENTRIES.keys() - entries.keys()):
        raise CheckpointMismatch(
            f"DFDNet's dictionary of {', '.join(lacking)} is missing. It travels apart from latest_net_G.pth, as "
            "DictionaryCenter512/*.npy: read both."
        )
    return load(DFDNet(entries), state_dict, "DFDNet")


def official(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read latest_net_G.pth, with the arrays of DictionaryCenter512 (`left_eye_256_center` ...) merged into it, into the
    network's state dict.

    Left out: VGG-19's second copy and its classifier, and the `to_rgb` heads, which the network never uses.

    Raises:
        CheckpointMismatch: naming what is wrong with a tensor.
    """
    dictionary = {
        f"dictionary.{n}": _normalised(n, checkpoint[f"{n}_center"]) for n in ENTRIES if f"{n}_center" in checkpoint
    }
    tensors = unwrap({key: value for key, value in checkpoint.items() if key.removesuffix("_center") not in ENTRIES})
    used = {key: value for key, value in tensors.items() if not key.startswith(("VggExtract.model.", "to_rgb"))}
    return _without_spectral_normalisation(_without_blur(used)) | dictionary


def _normalised(name: str, entries: np.ndarray | Tensor) -> Tensor:
    shape = ENTRIES[name]
    x = torch.as_tensor(np.asarray(entries)).float()
    if x.ndim < 2 or x[0].numel() != int(np.prod(shape)):
        raise CheckpointMismatch(
            f"{name}_center has shape {tuple(x.shape)}; an entry has {shape[0]}x{shape[1]}x{shape[2]} values."
        )
    x = x.reshape(-1, *shape)
    return (x - mean_of(x)).div_(deviation_of(x))


def _without_blur(tensors: StateDict) -> dict[str, Tensor]:
    """Leave out the blurs' buffers, which are constants of the network, once they prove to be what it uses."""
    blurs = {f"up{i}.conv1.0.{name}" for i in range(4) for name in ("weight", "weight_flip")}
    for key in sorted(blurs & tensors.keys()):
        if not torch.allclose(tensors[key].float(), BINOMIAL.expand_as(tensors[key])):
            raise CheckpointMismatch(f"{key} is not the binomial blur that DFDNet was released with.")
    return {key: value for key, value in tensors.items() if key not in blurs}


def _without_spectral_normalisation(tensors: StateDict) -> dict[str, Tensor]:
    """Divide every spectral weight by its largest singular value, as its stored vectors estimate it: sigma = u . W v."""
    plain = {}
    for key, value in tensors.items():
        layer, _, kind = key.rpartition(".")
        if kind not in ("weight_orig", "weight_u", "weight_v"):
            plain[key] = value
        elif kind == "weight_orig":
            try:
                u, v = tensors[f"{layer}.weight_u"], tensors[f"{layer}.weight_v"]
            except KeyError as missing:
                raise CheckpointMismatch(
                    f"{key} has no {missing} beside it to undo its spectral normalisation."
                ) from None
            sigma = torch.dot(u, value.flatten(1) @ v)
            if not sigma > 0:
                raise CheckpointMismatch(
                    f"{layer}: the vectors stored for its spectral norm give {sigma.item():g}, not above 0."
                )
            plain[f"{layer}.weight"] = value / sigma
    return plain


DFDNET = ModelSpec(
    name="dfdnet",
    role=Role.RESTORE,
    title="DFDNet",
    licence="CC BY-NC-SA 4.0 (code, weights and results: non-commercial, share alike)",
    source="https://github.com/csxmli2016/DFDNet",
    paper="arXiv:2008.00418",
    build=build,
    preprocess=Preprocess(template=DFDNET_512, color=Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3),
    official=official,
    guide=boxes_from_5,
    notes="Registered from its network and its folder of arrays together: --weights latest_net_G.pth "
    "--weights DictionaryCenter512. Beside the crops the forward takes component boxes; the pipeline "
    "makes them with `guide` from the face's landmarks, carried from the photo into the crop by the template's inverted "
    "transform.",
)
