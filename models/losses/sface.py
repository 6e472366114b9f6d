"""SFace's loss: pull towards the own class, push from the others, each only as far as it helps.

Zhong, Deng, Hu, Zhao, Li, Wen, "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", TIP 2021
(arXiv:2205.12010).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 64.0
SLOPE = 80.0  # k, of both sigmoids


class SFace(nn.Module):
    """Sigmoid-constrained hypersphere loss: no softmax and no margin.

    Called with embeddings (N, dimension) of any length and labels (N,) int64, it gives the mean loss (), of which only the
    gradient means anything: the two weights are constants to it. Below `intra` radians to its class a sample is no longer
    pulled, beyond `inter` radians to another class no longer pushed. The authors' settings (intra, inter): 0.80 and 1.23 in
    their code, 0.87 and 1.20 for CASIA-WebFace, 0.88 and 1.25 for VGGFace2, 0.90 and 1.20 for MS1MV2.
    """

    def __init__(self, dimension: int, classes: int, intra: float = 0.80, inter: float = 1.23) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dimension) * 0.01)
        self.intra, self.inter = intra, inter

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        angles = cosines.detach().clamp(-1, 1).arccos()
        own = F.one_hot(labels, len(self.weight)).bool()
        pull = torch.sigmoid(SLOPE * (angles - self.intra))
        push = torch.sigmoid(SLOPE * (self.inter - angles))
        return (SCALE * cosines * torch.where(own, -pull, push)).sum(dim=1).mean()
