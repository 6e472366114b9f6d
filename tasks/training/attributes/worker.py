"""What every worker of the training of heads does: embed its part of the faces, and fit the heads, the first one for all.

Embedding costs nearly all of the time, so it is what is divided. The heads are so small that every worker fits them all, by the
same numbers: nothing needs to be sent between them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from infra.tracking import reopen
from models.attributes.head import BACKBONE, classes_of
from models.spec import ModelSpec
from tasks.embed import embed
from tasks.evaluation.attribute_metrics import class_report
from tasks.model_version import ModelVersion, load_network
from tasks.training.attributes.fitting import Fit, Ints, Parts, parts_of, share_of
from tasks.training.attributes.options import AttributeOptions
from tasks.training.collection import Faces
from tasks.training.loop import Diverged, Progress, loop

# The protocol: the share of the labels, and how often it is drawn anew. The last head, of all labels, is the result.
SHARES = ((0.01, 5), (0.1, 5), (1.0, 1))
DRAWS = tuple((share, draw) for share, draws in SHARES for draw in range(draws))
BATCH = 256
MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. `labels` (N,) are classes, `trained` and `held` rows of the faces."""

    options: AttributeOptions
    backbone: ModelVersion
    spec: ModelSpec
    faces: Faces
    labels: Ints
    trained: Ints
    held: Ints
    folder: Path
    tracking_uri: str
    tracking_run: str
    threads: int

    @property
    def steps(self) -> int:
        return len(DRAWS) * self.options.epochs


def work(job: Job) -> None:
    """Train from the last checkpoint, or from the beginning if there is none. Ray Train runs this in every worker."""
    loop(partial(Heads, job), job.threads)


class Heads:
    """The state of a training in one worker: `step` epochs are taken, of one head after the other."""

    def __init__(self, job: Job, rank: int, workers: int, device: torch.device) -> None:
        self.job, self.rank, self.workers, self.device = job, rank, workers, device
        self.step, self.progress = 0, Progress(job.folder, rank)
        self.history: list[dict[str, float]] = []
        self.classes = classes_of(job.spec.attributes[0])
        self.vectors = torch.zeros(0)
        self.fit: Fit | None = None
        self.parts = Parts(job.trained, job.trained)

    @property
    def over(self) -> bool:
        return self.step == self.job.steps

    @property
    def pauses(self) -> bool:
        return self.step % self.job.options.epochs == 0

    def begin(self) -> None:
        """Embed this worker's part of the faces, where that has not been done, and leave it for the others."""
        path = self._part(self.rank)
        if not path.exists():
            network, rows = load_network(self.job.backbone).to(self.device), self._rows(self.rank)
            crops = self.job.faces.crops()
            parts = [
                embed(network, self.job.backbone.spec, crops[part], str(self.device))
                for part in np.split(rows, range(BATCH, len(rows), BATCH))
            ]
            partial_path = path.with_suffix(".partial.npy")
            np.save(partial_path, np.concatenate(parts))
            partial_path.rename(path)

    def resume(self, path: Path) -> None:
        """Go on from where `save` was called: with the next head."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.step, self.history = state["step"], state["history"]
        self.begin()

    def join(self) -> None:
        """Wait for the others' parts, and put all in the order of the faces."""
        if self.workers > 1:
            torch.distributed.barrier()
        dimension = self.job.backbone.spec.dimension or 0
        vectors = np.zeros((len(self.job.faces), dimension), np.float32)
        for rank in range(self.workers):
            vectors[self._rows(rank)] = np.load(self._part(rank))
        self.vectors = torch.from_numpy(vectors)

    def take(self) -> None:
        """Take the next epoch."""
        options, labels = self.job.options, torch.from_numpy(self.job.labels)
        if self.fit is None:
            share, draw = DRAWS[self.step // options.epochs]
            rows = share_of(self.job.trained, share, options.seed + draw)
            self.parts = parts_of(self.job.faces.identities, rows)
            seed = np.random.SeedSequence([options.seed, self.step]).generate_state(1).item()
            vectors = self.vectors[self.parts.fitted]
            self.fit = Fit(options, vectors, labels[self.parts.fitted], len(self.classes), seed)
        loss = self.fit.take()
        if not np.isfinite(loss):
            raise Diverged("the loss is not finite any more: take a smaller --learning-rate")
        self.step += 1
        if self.fit.over:
            self.fit.calibrate(self.vectors[self.parts.calibrating], labels[self.parts.calibrating])
        self.progress.tell(self.step, self.over)

    def judge(self) -> None:
        """Judge the head that is done on the people kept for it; on the first worker, log that. No head, nothing to judge."""
        if self.fit is None:
            return
        share, draw = DRAWS[self.step // self.job.options.epochs - 1]
        with torch.inference_mode():
            probabilities = self.fit.head(self.vectors[self.job.held]).softmax(dim=1).double().numpy()
        report = class_report(self.classes, self.job.labels[self.job.held], probabilities)
        found = {
            "share": share,
            "faces": float(len(np.union1d(self.parts.fitted, self.parts.calibrating))),
            "temperature": float(self.fit.head.temperature),
            "accuracy": report.accuracy.value,
            "balanced_accuracy": report.balanced_accuracy,
            "macro_f1": report.macro_f1,
            "calibration_error": report.calibration_error,
        }
        self.history.append(found)
        if self.rank == 0:
            metrics = {f"{name}/{share:.0%} of the labels".replace("%", " percent"): found[name] for name in MEASURES}
            reopen(self.job.tracking_uri, self.job.tracking_run).metrics(metrics, step=draw)

    def save(self, path: Path) -> bool:
        """On the first worker: write the heads' judgements so far, and the last head with its backbone."""
        assert self.fit is not None
        done, self.fit = self.fit, None
        if self.rank == 0:
            state = {"step": self.step, "history": self.history, "network": {}}
            if self.over:
                backbone = load_network(self.job.backbone).state_dict()
                state["network"] = {f"{BACKBONE}{key}": value for key, value in backbone.items()} | {
                    f"head.{key}": value for key, value in done.head.state_dict().items()
                }
            torch.save(state, path)
        return self.rank == 0

    def _rows(self, rank: int) -> NDArray[np.int64]:
        return np.array_split(np.arange(len(self.job.faces)), self.workers)[rank]

    def _part(self, rank: int) -> Path:
        return self.job.folder / f"vectors-{rank}-of-{self.workers}.npy"
