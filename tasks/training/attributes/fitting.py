"""Fit one head to labelled embeddings: class weights, and a temperature on people that the head has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.attributes.head import Head
from tasks.training.attributes.options import AttributeOptions
from tasks.training.holdout import by_person, in_order_of_chance
from tasks.training.loop import schedule

CALIBRATION = 0.2  # share of the people that is not trained on, but decides the temperature
TEMPERATURES = (0.2, 10.0)
PRIOR = 0.5  # deviation of the temperature's logarithm around 0, so that a handful of faces cannot ask for anything
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Rows of the faces that a head is fitted to, and of those that its temperature is."""

    fitted: Ints
    calibrating: Ints


def parts_of(identities: Sequence[str], rows: Ints) -> Parts:
    """Divide rows by people; with too few people for that, both parts are all of them."""
    people = by_person([identities[row] for row in rows])
    order = in_order_of_chance(people)
    kept = set(order[: round(CALIBRATION * len(order))])
    calibrating = np.array([rows[place] for name in kept for place in people[name]], np.int64)
    fitted = np.array([rows[place] for name in order if name not in kept for place in people[name]], np.int64)
    if not len(calibrating) or not len(fitted):
        return Parts(rows, rows)
    return Parts(np.sort(fitted), np.sort(calibrating))


def share_of(rows: Ints, share: float, seed: int) -> Ints:
    """Draw a share of the rows, at least one; the smaller shares of a seed lie within the larger ones."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[: max(1, round(share * len(rows)))])


def class_weights(labels: Tensor, classes: int, power: float) -> Tensor:
    """Weights (classes,) of mean 1 over the faces: the inverse frequency to some power; 0 for classes that nobody has."""
    counts = torch.bincount(labels, minlength=classes).float()
    weights = torch.where(counts > 0, counts.clamp_min(1) ** -power, torch.zeros(()))
    return weights * counts.sum() / (weights * counts).sum()


class Fit:
    """A head on its way: `epoch` epochs are taken of the options' `epochs`."""

    def __init__(self, options: AttributeOptions, vectors: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        torch.manual_seed(seed)
        widths = (vectors.shape[1], *([options.hidden] if options.hidden else []), classes)
        self.options, self.vectors, self.labels, self.seed = options, vectors, labels, seed
        self.head = Head(*widths).requires_grad_(True)
        self.head.mean.copy_(vectors.mean(dim=0))
        self.head.spread.copy_((vectors - self.head.mean).square().mean().sqrt().clamp_min(1e-6))
        self.weights = class_weights(labels, classes, options.class_weights)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.epoch = 0

    @property
    def over(self) -> bool:
        return self.epoch == self.options.epochs

    def take(self) -> float:
        """Take an epoch, in an order that follows from seed and epoch alone; returns its mean loss."""
        order = torch.from_numpy(np.random.default_rng([self.seed, self.epoch]).permutation(len(self.labels)))
        batches = order.split(self.options.batch_size)
        total = 0.0
        for place, rows in enumerate(batches):
            progress = (self.epoch + (place + 0.5) / len(batches)) / self.options.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.options.learning_rate * schedule(progress)
            loss = F.cross_entropy(self.head(self.vectors[rows]), self.labels[rows], self.weights)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach()) * len(rows)
        self.epoch += 1
        return total / len(self.labels)

    def calibrate(self, vectors: Tensor, labels: Tensor) -> None:
        """Choose the temperature under which the labels (N,) of other people's embeddings are likeliest."""
        self.head.requires_grad_(False)
        logits = self.head(vectors)
        steps = torch.from_numpy(np.geomspace(*TEMPERATURES, 200)).float()
        losses = torch.stack([F.cross_entropy(logits / t, labels, reduction="sum") for t in steps])
        losses += steps.log().square() / (2 * PRIOR**2)
        self.head.temperature.copy_(steps[losses.argmin()])
