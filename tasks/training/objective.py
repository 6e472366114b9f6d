"""What a training makes smaller: for a whole network the loss over identities, for adapters above all the distance to the
backbone's own judgement.

Adapters must recognise degraded faces and lose nothing at full size. So the embedding of the degraded face is drawn to where
the frozen backbone puts the clean one, among the people of the collection too, and so is, through the other end of the blend,
that of the clean face. Embeddings are compared after subtracting the mean face: all faces share a direction (dlib's have a
mean cosine of about 0.8), which would drown what tells people apart.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.lora import Adapted, is_adapter
from models.losses import LOSSES
from models.resolution import detail, shrunk
from models.spec import Preprocess

LOWEST, HIGHEST = 16, 64  # px, sides that crops are shrunk to; every octave as often
GATE_SIDES = (12, 96)  # px, those that the gate is fitted to: beyond what it has to tell apart
GATE_SAMPLE = 2048  # faces
MODES = ("bicubic", "bilinear")
CLEAN = 0.25  # share of a batch that stays clean, so that full size is trained too
TEMPERATURE = 1 / 20  # of the similarities to people, as probabilities
PEOPLE_WEIGHT = 0.5
IDENTITY_WEIGHT = 0.01  # the losses over identities begin near 12, distillation at 0.3

Terms = Mapping[str, Tensor]


class Supervised(nn.Module):
    """The loss over identities of a network that is trained as a whole, but for what its family leaves as it is."""

    def __init__(
        self,
        network: nn.Module,
        trains: Callable[[str], bool],
        preprocess: Preprocess,
        loss: str,
        dimension: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        for key, value in network.named_parameters():
            value.requires_grad_(trains(key))
        self.criterion = LOSSES[loss](dimension, classes)

    def begin(self, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator) -> None:
        """Nothing needs to be known before the first step."""

    def forward(self, crops: Tensor, labels: Tensor, generator: torch.Generator) -> Terms:
        """Crops (N, S, S, 3) uint8 and labels (N,) to the terms of the loss; `loss` is the whole."""
        loss = self.criterion(self.network.train()(channels_last(self.preprocess(crops))), labels)
        return {"loss": loss, "identity": loss.detach()}


class Adaptation(nn.Module):
    """Distillation and the loss over identities of adapters on a frozen backbone."""

    mean_face: Tensor
    people: Tensor

    def __init__(self, network: Adapted, preprocess: Preprocess, loss: str, dimension: int, classes: int) -> None:
        super().__init__()
        self.network, self.preprocess = network.eval(), preprocess
        for key, value in network.named_parameters():
            value.requires_grad_(is_adapter(key))
        self.criterion = LOSSES[loss](dimension, classes)
        self.register_buffer("mean_face", torch.zeros(dimension))
        self.register_buffer("people", torch.zeros(classes, dimension))

    @torch.no_grad()
    def begin(self, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator) -> None:
        """See every face once (crops, labels): take the mean face and where each person is, and fit the gate."""
        details: list[Tensor] = []
        sides: list[Tensor] = []
        total, counts = torch.zeros_like(self.people), torch.zeros_like(self.people[:, :1])
        for crops, labels in batches:
            x = self.preprocess(crops)
            vectors = F.normalize(self.network.backbone(x))
            total.index_add_(0, labels, vectors)
            counts.index_add_(0, labels, torch.ones_like(vectors[:, :1]))
            if sum(len(drawn) for drawn in sides) < GATE_SAMPLE:
                sides.append(drawn_sides(len(crops), GATE_SIDES, generator))
                details.append(detail(self.preprocess(degraded(crops, sides[-1], generator))).cpu())
        self.network.gate.fit(torch.cat(details), torch.cat(sides))
        self.mean_face.copy_(total.sum(dim=0) / counts.sum())
        self.people.copy_(F.normalize(total / counts - self.mean_face))
        if isinstance(centres := getattr(self.criterion, "weight", None), nn.Parameter):
            centres.copy_(self.people)

    def forward(self, crops: Tensor, labels: Tensor, generator: torch.Generator) -> Terms:
        """Crops (N, S, S, 3) uint8 and labels (N,) to the terms of the loss; `loss` is the whole."""
        poor = len(crops) - round(CLEAN * len(crops))
        sides = drawn_sides(poor, (LOWEST, HIGHEST), generator)
        seen = torch.cat([degraded(crops[:poor], sides, generator), crops[poor:]])
        with torch.no_grad():
            wanted = self.centred(self.network.backbone(channels_last(self.preprocess(crops))))
        found = self.centred(self.network(channels_last(self.preprocess(seen))))
        distillation = (1 - F.cosine_similarity(found, wanted)).mean()
        people = F.kl_div(self.similarity(found), self.similarity(wanted), reduction="batchmean", log_target=True)
        # Both, so that a loss that mines pairs has some where people have one face only.
        identity = self.criterion(torch.cat([found[:poor], wanted[:poor]]), labels[:poor].repeat(2))
        loss = distillation + PEOPLE_WEIGHT * people + IDENTITY_WEIGHT * identity
        return {
            "loss": loss,
            "distillation": distillation.detach(),
            "people": people.detach(),
            "identity": identity.detach(),
        }

    def centred(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors) - self.mean_face

    def similarity(self, vectors: Tensor) -> Tensor:
        """Log-probabilities (N, classes) of each person, by similarity."""
        return F.log_softmax(F.normalize(vectors) @ self.people.T / TEMPERATURE, dim=1)


def drawn_sides(count: int, limits: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw sides (count,) in px, uniform in their logarithm."""
    low, high = limits
    return (low * (high / low) ** torch.rand(count, generator=generator)).round()


def degraded(crops: Tensor, sides: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink crops (N, S, S, 3) uint8 to `sides` (N,) px and enlarge them again, each in one of two ways."""
    modes = [MODES[index] for index in torch.randint(len(MODES), (len(crops),), generator=generator).tolist()]
    return shrunk(crops, [int(side) for side in sides.tolist()], modes)


def channels_last(x: Tensor) -> Tensor:
    """The same values in the layout in which convolutions are fastest."""
    return x.contiguous(memory_format=torch.channels_last)
