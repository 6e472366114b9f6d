"""Adversaries of a restorer: what tells restored pictures, eyes and mouths from photographed ones.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017 (PatchGAN), with hinge loss and
adaptive weight of Esser et al., "Taming Transformers", CVPR 2021 (eq. 7); components after GFP-GAN (Wang et al., CVPR 2021,
Section 3.3), as RestoreFormer uses them.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
MAX_ADAPTIVE = 1e4


class PatchDiscriminator(nn.Module):
    """Pictures (N, 3, H, W) to a verdict per patch (N, 1, h, w): positive where it looks photographed."""

    def __init__(self, width: int = 64, halvings: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        channels = width
        for i in range(1, halvings + 1):
            stride, before = (2 if i < halvings else 1), channels
            channels = width * min(2**i, 8)
            layers += [nn.Conv2d(before, channels, 4, stride, 1, bias=False), nn.BatchNorm2d(channels)]
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class ComponentDiscriminator(nn.Module):
    """Crops of one facial component (N, 3, s, s) to a verdict (N, 1)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.layers = nn.Sequential(
            *(
                part
                for a, b in itertools.pairwise(sizes)
                for part in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE))
            )
        )
        self.verdict = nn.Linear(sizes[-1], 1)

    def forward(self, crops: Tensor) -> Tensor:
        return self.verdict(self.layers(crops).mean(dim=(2, 3)))


def hinge(photographed: Tensor, restored: Tensor) -> Tensor:
    """Loss of the adversary of whole pictures, from its verdicts."""
    return 0.5 * (F.relu(1 - photographed).mean() + F.relu(1 + restored).mean())


def logistic(photographed: Tensor, restored: Tensor) -> Tensor:
    """Loss of a component's adversary, from its verdicts."""
    return 0.5 * (F.softplus(-photographed).mean() + F.softplus(restored).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the two losses' gradients at the decoder's last layer, so that neither drowns the other."""
    first, second = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)
    )
    return (first.norm() / (second.norm() + 1e-4)).clamp(0, MAX_ADAPTIVE).detach()


def regions(pictures: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cut boxes (N, 4) x1, y1, x2, y2 in px out of pictures (N, 3, H, W), bilinearly, to (N, 3, side, side)."""
    height, width = pictures.shape[2:]
    x1, y1, x2, y2 = (boxes[:, i, None] for i in range(4))
    steps = (torch.arange(side, device=pictures.device) + 0.5) / side
    x = (x1 + (x2 - x1) * steps) / width * 2 - 1
    y = (y1 + (y2 - y1) * steps) / height * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
