"""What the two stages make smaller (RestoreFormer++, arXiv:2308.07228, Section 3.3): reconstruction (L1 plus a perceptual
distance), the codebook's loss, the embedding's distance, and what adversaries of the picture, the eyes and the mouth say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses.adversarial import (
    ComponentDiscriminator,
    PatchDiscriminator,
    adaptive_weight,
    hinge,
    logistic,
    regions,
)
from models.restoration.degradation import REFERENCE_SIZE, Degradation, component_boxes
from models.restoration.restoreformer import HQ_DICTIONARY, RESTORER, RESTORER_PLUS_PLUS, ROHQD, RestoreFormer
from models.spec import Preprocess
from models.template import LandmarkTemplate
from tasks.training.restoration.options import RestorationOptions, Variant

COMPONENTS = ("left_eye", "right_eye", "mouth")
HALVES = (20.0, 20.0, 30.0)  # px of a 512 px crop: half sides of the components, about the means over FFHQ
REGIONS = (80, 80, 120)  # px of a 512 px crop that a component is resampled to
SMALLEST_REGION = 16  # px
FASTER = 10  # times the learning rate, for the components' adversaries
VARIANTS = {  # the dictionary of each restorer, and itself
    Variant.RESTOREFORMER: (HQ_DICTIONARY, RESTORER),
    Variant.PLUS_PLUS: (ROHQD, RESTORER_PLUS_PLUS),
}

Terms = Mapping[str, Tensor]


@dataclass(frozen=True)
class Faces:
    """A batch: clean faces and what was made of them (N, 3, S, S) in [-1, 1], and where their components lie (3, N, 4)."""

    clean: Tensor
    seen: Tensor
    boxes: Tensor


def boxes_of(template: LandmarkTemplate, degradations: Sequence[Degradation]) -> Tensor:
    """Boxes (3, N, 4) of eyes and mouth in degraded crops of a template, in px."""
    points = torch.tensor(template.points)
    centres = torch.stack([points[0], points[1], points[3:].mean(dim=0)])
    halves = torch.tensor(HALVES)[:, None] * template.size / REFERENCE_SIZE
    components = torch.cat([centres, halves], dim=1)
    return torch.stack([component_boxes(components, d, template.size) for d in degradations], dim=1)


class Recogniser(nn.Module):
    """Crops of one template (N, 3, S, S) in [-1, 1] to embeddings of unit length (N, D), through which gradients flow."""

    grid: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess, seen: LandmarkTemplate) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        points = torch.tensor(seen.points)[None]
        low, high = points[0].amin(dim=0), points[0].amax(dim=0)
        transform = preprocess.template.transforms(torch.cat([low, high])[None], points)[0]
        steps = torch.arange(preprocess.template.size, dtype=torch.float32)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        places = torch.stack([x, y, torch.ones_like(x)], dim=2) @ transform.T
        self.register_buffer("grid", (places + 0.5) * 2 / seen.size - 1, persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        view = F.grid_sample(faces, self.grid.expand(len(faces), -1, -1, -1), mode="bilinear", align_corners=False)
        pixels = (view.permute(0, 2, 3, 1) + 1) * 127.5
        return F.normalize(self.network(self.preprocess(pixels)))


class Objective(nn.Module):
    """One stage: the network that is trained, its adversaries, and the frozen judges of its losses.

    The restorer begins with the dictionary's weights, and the codebook stays as the first stage has left it.
    """

    def __init__(
        self,
        options: RestorationOptions,
        dictionary: RestoreFormer | None,
        perceptual: nn.Module | None,
        recogniser: nn.Module | None,
    ) -> None:
        super().__init__()
        self.options, self.restores = options, dictionary is not None
        self.network = RestoreFormer(options.architecture, VARIANTS[options.variant][self.restores])
        if dictionary is not None:
            self.network.load_state_dict(dictionary.state_dict(), strict=False)  # attention of the second level is new
            self.network.quantize.requires_grad_(False)
        self.adversary = PatchDiscriminator()
        self.components = nn.ModuleList(ComponentDiscriminator() for _ in COMPONENTS)
        self.judges = (perceptual, recogniser)  # in a tuple: no part of what is saved

    @property
    def trained(self) -> list[dict[str, object]]:
        """Parameter groups of the network, with the factor of their learning rate."""
        named = [(name, value) for name, value in self.network.named_parameters() if value.requires_grad]
        attention = [value for name, value in named if self.restores and name.startswith("decoder.") and "attn" in name]
        fast = {id(value) for value in attention}
        rest = [value for _, value in named if id(value) not in fast]
        return [
            {"params": rest, "factor": 1},
            *([{"params": attention, "factor": self.options.attention_rate}] if attention else []),
        ]

    @property
    def adversaries(self) -> list[dict[str, object]]:
        """Parameter groups of the adversaries."""
        return [
            {"params": list(self.adversary.parameters()), "factor": 1},
            {"params": list(self.components.parameters()), "factor": FASTER},
        ]

    def contested(self, step: int) -> bool:
        """Whether the adversaries take part in a step of this stage."""
        options = self.options
        if self.restores:
            return step >= options.adversaries_from and options.adversarial + options.component > 0
        return step >= options.dictionary_adversaries_from and options.adversarial > 0

    def forward(self, faces: Faces, contested: bool) -> tuple[Terms, Tensor]:
        """The terms of the network's loss, of which `loss` is the whole, and what it made of the faces, detached."""
        options, (perceptual, recogniser) = self.options, self.judges
        quantised, features = self.network.encode(faces.seen)
        made = self.network.decode(quantised.vectors, features)
        terms = {"l1": (made - faces.clean).abs().mean(), "codebook": quantised.loss}
        reconstruction = terms["l1"]
        if perceptual is not None:
            terms["perceptual"] = perceptual(made, faces.clean).mean()
            reconstruction = reconstruction + options.perceptual * terms["perceptual"]
        loss = reconstruction + quantised.loss
        if self.restores and recogniser is not None:
            with torch.no_grad():
                wanted = recogniser(faces.clean)
            terms["identity"] = (recogniser(made) - wanted).norm(dim=1).mean()
            loss = loss + options.identity * terms["identity"]
        if contested:
            terms["adversarial"] = -self.adversary(made).mean()
            weight = adaptive_weight(reconstruction, terms["adversarial"], self.network.decoder.conv_out.weight)
            loss = loss + options.adversarial * weight * terms["adversarial"]
            if self.restores:
                verdicts = [
                    judge(crops) for judge, crops in zip(self.components, self._regions(made, faces.boxes), strict=True)
                ]
                terms["component"] = torch.stack([F.softplus(-verdict).mean() for verdict in verdicts]).sum()
                loss = loss + options.component * terms["component"]
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}, made.detach()

    def adversaries_loss(self, faces: Faces, made: Tensor) -> Tensor:
        """What the adversaries make smaller: they tell clean faces from made ones."""
        loss = hinge(self.adversary(faces.clean), self.adversary(made))
        if self.restores:
            pairs = zip(self._regions(faces.clean, faces.boxes), self._regions(made, faces.boxes), strict=True)
            for judge, (clean, restored) in zip(self.components, pairs, strict=True):
                loss = loss + logistic(judge(clean), judge(restored))
        return loss

    def _regions(self, pictures: Tensor, boxes: Tensor) -> list[Tensor]:
        sides = [max(SMALLEST_REGION, round(side * self.options.size / REFERENCE_SIZE)) for side in REGIONS]
        return [regions(pictures, box, side) for box, side in zip(boxes.to(pictures), sides, strict=True)]
