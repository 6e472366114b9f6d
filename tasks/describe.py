"""Describe: estimates of a face's attributes. A sensitive attribute that is not switched on is not computed.

What travels on is what a face's own photo can be asked about: points lie in pixels of the photo, not of a crop, and a
confidence is the model's own times the share of the face that is to be seen, so that a face turned away, cut off or covered
is not described as surely as one seen in full; a model that finds more hidden itself is heard. Probabilities stay as the
model gave them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.attributes.measured import VISIBILITY
from models.spec import Attribute, Estimate, Kind, ModelSpec
from models.vocabulary import OCCLUSION_29
from tasks.execution.cuda_graph import Network, recorded
from tasks.execution.guard import guarded
from tasks.execution.inference import load_for_inference
from tasks.execution.transfer import download, upload
from tasks.model_version import ModelVersion
from tasks.photo_faces import BOXES, EMBEDDING, LANDMARKS, PhotoFaces, crop, estimate, handed_out, of_all
from tasks.recipe import MEASURED_VERSION

BATCH = 64  # crops per forward, but never more than
BATCH_PIXELS = 2**20  # in all: a network that draws maps holds a dozen numbers for each
VISIBLE = estimate(MEASURED_VERSION.contract, VISIBILITY.name, "value")
Columns = dict[str, np.ndarray]


class Describe:
    """Estimate attributes with several model versions, each run once per face.

    In: the crops of each version's template. Out: `value`, `confidence` and, for categories, `probabilities` of every
    attribute in `wanted` under each version's contract. The versions whose contracts are in `heads` read the faces'
    embeddings instead of crops.
    """

    def __init__(
        self,
        versions: Sequence[ModelVersion],
        wanted: frozenset[str],
        device: str,
        heads: frozenset[str] = frozenset(),
    ) -> None:
        self.wanted, self.device, self.heads = wanted, device, heads
        self.models = [(version, self._for_batches(version)) for version in versions]

    def _for_batches(self, version: ModelVersion) -> Any:
        network, spec = load_for_inference(version, self.device), version.spec
        if version.contract in self.heads:
            return network
        return recorded(network, spec, batch_of(spec), self.device, *asked(spec, self.wanted))

    def __call__(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        return guarded("describe", photos, self._describe)

    def _describe(self, photos: Sequence[PhotoFaces]) -> list[PhotoFaces]:
        described = list(photos)
        for version, network in self.models:
            if version.contract in self.heads:
                vectors = of_all(photos, EMBEDDING)
                found = describe_embeddings(version, network, vectors, self.wanted, self.device)
            else:
                assert version.spec.preprocess is not None
                crops = of_all(photos, crop(version.spec.preprocess.template))
                found = describe_crops(version, network, crops, self.wanted, self.device)
            described = in_photos(described, version, found)
        return described


def describe_crops(
    version: ModelVersion, network: Network, crops: np.ndarray, wanted: frozenset[str], device: str
) -> Columns:
    """Estimate the wanted attributes of crops (N, S, S, 3) uint8, as columns of N rows; points in pixels of the crop."""
    spec = version.spec
    assert spec.preprocess is not None
    assert spec.interpret is not None
    batch, found = batch_of(spec), []
    with torch.inference_mode():
        for start in range(0, len(crops), batch):
            faces = upload(np.ascontiguousarray(crops[start : start + batch]), device)
            raw = network(spec.preprocess(faces), *asked(spec, wanted))
            found.append(columns(version, spec.interpret(raw), wanted))
    return joined(found)


def describe_embeddings(
    version: ModelVersion, network: nn.Module, vectors: np.ndarray, wanted: frozenset[str], device: str
) -> Columns:
    """Estimate the wanted attributes by a head of the network that made the embeddings (N, D) float32 of unit length."""
    assert version.spec.interpret is not None
    with torch.inference_mode():
        raw = network.get_submodule("head")(upload(np.ascontiguousarray(vectors), device))
        return columns(version, version.spec.interpret(raw), wanted) if len(vectors) else {}


def batch_of(spec: ModelSpec) -> int:
    """How many crops a describing network is given at once."""
    assert spec.preprocess is not None
    return max(1, min(BATCH, BATCH_PIXELS // spec.preprocess.template.size**2))


def asked(spec: ModelSpec, wanted: frozenset[str]) -> tuple[frozenset[str], ...]:
    """What a describing network is given beside the crops: one of many attributes computes those that are wanted, one of a
    single attribute runs or does not."""
    names = frozenset(attribute.name for attribute in spec.attributes)
    return () if len(names) == 1 else (names & wanted,)


def columns(version: ModelVersion, estimates: Mapping[str, Estimate], wanted: frozenset[str]) -> Columns:
    """The wanted estimates under the names that they travel by."""
    found: dict[str, Tensor] = {}
    for attribute in version.spec.attributes:
        if attribute.name not in wanted or attribute.name not in estimates:
            continue
        opinion = estimates[attribute.name]
        value = opinion.value.byte() if attribute.kind is Kind.MASK else opinion.value.float()
        parts = {"value": value, "confidence": opinion.confidence, "probabilities": opinion.probabilities}
        for what, part in parts.items():
            if part is not None:
                found[estimate(version.contract, attribute.name, what)] = part
    return download(found)


def joined(batches: Sequence[Columns]) -> Columns:
    """The columns of several batches under each other."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in (batches[0] if batches else {})}


def in_photos(photos: Sequence[PhotoFaces], version: ModelVersion, found: Columns) -> list[PhotoFaces]:
    """Hand out what was found of all faces: points in their photo's pixels, confidences no higher than what can be seen."""
    if not found:
        return list(photos)
    rows, visible = dict(found), of_all(photos, VISIBLE)
    hidden = rows.get(estimate(version.contract, OCCLUSION_29.name, "value"))
    # Less is to be seen than was measured if the version itself holds more points for hidden.
    seen = visible if hidden is None else np.minimum(visible, (hidden <= 0.5).mean(axis=1))
    for attribute in version.spec.attributes:
        _in_photos(photos, version, attribute, rows, visible if attribute == OCCLUSION_29 else seen)
    return handed_out(photos, rows)


def _in_photos(
    photos: Sequence[PhotoFaces], version: ModelVersion, attribute: Attribute, rows: Columns, seen: np.ndarray
) -> None:
    value, confidence = (estimate(version.contract, attribute.name, what) for what in ("value", "confidence"))
    if value not in rows:
        return
    rows[confidence] = rows[confidence] * seen
    if attribute.kind is Kind.POINTS and version.spec.preprocess is not None:
        boxes, landmarks = (torch.from_numpy(of_all(photos, name)) for name in (BOXES, LANDMARKS))
        to_photo = version.spec.preprocess.template.transforms(boxes, landmarks).numpy()
        rows[value] = rows[value] @ to_photo[:, :, :2].transpose(0, 2, 1) + to_photo[:, None, :, 2]
