"""What every worker of a training does: steps and checkpoints, and the first of them verification.

Everything random in a step follows from seed, step and worker alone. So a training that was killed and goes on from its last
checkpoint takes the very steps that it would have taken.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.tracking import reopen
from models.lora import Adapted
from models.spec import ModelSpec
from tasks.model_version import ModelVersion, load_network
from tasks.training.collection import Faces
from tasks.training.holdout import Split, verify
from tasks.training.loop import MAX_GRADIENT, Diverged, Progress, loop, schedule
from tasks.training.objective import Adaptation, Supervised
from tasks.training.options import TrainingOptions

CHECKPOINT_STEPS = 500  # beside the ends of epochs, which may be hours apart
WEIGHT_DECAY = 1e-2  # of weights alone
TOGETHER = 2  # faces of one person that follow each other, so that a loss that mines pairs finds some in every batch
BATCH = 64  # of the forwards before the first step


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. `folder` and the tracking URI must be reachable from every worker."""

    options: TrainingOptions
    backbone: ModelVersion
    spec: ModelSpec
    faces: Faces
    split: Split
    folder: Path
    tracking_uri: str
    tracking_run: str
    threads: int

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.split.rows) // self.options.batch_size)

    @property
    def steps(self) -> int:
        return self.options.epochs * self.steps_per_epoch


def work(job: Job) -> None:
    """Train from the last checkpoint, or from the beginning if there is none. Ray Train runs this in every worker."""
    loop(partial(Training, job), job.threads)


class Training:
    """The state of a training in one worker: `step` steps are taken."""

    def __init__(self, job: Job, rank: int, workers: int, device: torch.device) -> None:
        assert job.spec.preprocess is not None
        assert job.spec.dimension is not None
        self.job, self.rank, self.workers, self.device = job, rank, workers, device
        self.crops, self.labels = job.faces.crops(), torch.from_numpy(job.split.labels)
        self.step, self.sums, self.progress = 0, dict[str, float](), Progress(job.folder, rank)
        self.history: list[dict[str, float]] = []  # verification before the first epoch and after each
        torch.manual_seed(job.options.seed)
        network = load_network(job.backbone)
        facts = (job.spec.preprocess, job.options.loss, job.spec.dimension, job.split.classes)
        objective: Supervised | Adaptation
        if job.options.lora is None:
            objective = Supervised(network, job.spec.trains, *facts)
        else:
            objective = Adaptation(Adapted(network, job.options.lora), *facts)
        self.objective = objective.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = self.objective
        self.optimizer = torch.optim.AdamW(parameter_groups(self.objective), lr=job.options.learning_rate)

    @property
    def _ends_epoch(self) -> bool:
        return self.step % self.job.steps_per_epoch == 0

    def begin(self) -> None:
        """Let the objective see every face once."""
        rows = np.arange(len(self.labels))
        batches = (self._faces(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))
        self.objective.begin(batches, torch.Generator().manual_seed(self.job.options.seed))

    @property
    def over(self) -> bool:
        return self.step >= self.job.steps

    @property
    def pauses(self) -> bool:
        return self._ends_epoch or self.step % CHECKPOINT_STEPS == 0

    def join(self) -> None:
        """Join the objective with those of the other workers."""
        import ray.train.torch  # noqa: PLC0415 - only workers need it

        self.model = ray.train.torch.prepare_model(
            self.objective,
            parallel_strategy_kwargs={"broadcast_buffers": False} if self.workers > 1 else None,
        )

    def take(self) -> None:
        """Take the next step."""
        options = self.job.options
        seed = np.random.SeedSequence([options.seed, self.step, self.rank]).generate_state(1).item()
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        crops, labels = self._faces(self._drawn())
        mirrored = torch.rand(len(crops), generator=generator) < 0.5
        crops[mirrored] = crops[mirrored].flip(2)
        terms = self.model(crops, labels, generator)
        if not bool(terms["loss"].isfinite()):
            raise Diverged(
                f"the loss is not finite after {self.step} steps: take a smaller --learning-rate than {options.learning_rate:g}"
            )
        self.optimizer.zero_grad()
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), MAX_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * schedule((self.step + 0.5) / self.job.steps)
        self.optimizer.step()
        self.step += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.progress.tell(self.step, last=self.over)

    def judge(self) -> None:
        """On the first worker: verify held-out people, and log that with the mean terms of the epoch. Begin a new epoch."""
        if not self._ends_epoch:
            return
        if self.rank == 0:
            network = self.objective.network.eval()
            metrics = verify(network, self.job.spec, self.crops, self.job.split, str(self.device))
            means = {f"train/{name}": total / self.job.steps_per_epoch for name, total in self.sums.items()}
            run = reopen(self.job.tracking_uri, self.job.tracking_run)
            run.metrics({**metrics, **means}, step=len(self.history))
            self.history.append(metrics)
        self.sums = {}

    def save(self, path: Path) -> bool:
        """On the first worker: write all that the next steps depend on. Tells whether it did."""
        if self.rank == 0:
            state = {"step": self.step, "sums": self.sums, "history": self.history}
            parts = {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save({**state, **parts}, path)
        return self.rank == 0

    def resume(self, path: Path) -> None:
        """Go on from where `save` was called."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.sums, self.history = state["step"], state["sums"], state["history"]
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _faces(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Crops and labels at places of the split."""
        crops = torch.from_numpy(self.crops[self.job.split.rows[places]])
        return crops.to(self.device), self.labels[places].to(self.device)

    def _drawn(self) -> NDArray[np.int64]:
        """This worker's places of the next step."""
        epoch, batch = divmod(self.step, self.job.steps_per_epoch)
        order = drawn_order(self.job.split.labels, np.random.default_rng([self.job.options.seed, epoch]))
        size = self.job.options.batch_size
        return np.array_split(order[batch * size : (batch + 1) * size], self.workers)[self.rank]


def parameter_groups(objective: nn.Module) -> list[dict[str, object]]:
    """What is trained, in two groups: weights, which decay; biases, scales of normalisations and slopes of PReLU, which do not.

    He et al., "Bag of Tricks for Image Classification", CVPR 2019 (arXiv:1812.01187), Section 3.1; of the slopes: He et al.,
    "Delving Deep into Rectifiers", ICCV 2015 (arXiv:1502.01852), Section 2.1.
    """
    trained = [value for value in objective.parameters() if value.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]


def drawn_order(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw an order of all faces in which those of one person come in groups of TOGETHER, as far as there are as many."""
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by person, and at random among a person's own
    begins = np.diff(labels[order], prepend=-1) != 0
    places = np.arange(len(order))
    since = places - np.maximum.accumulate(np.where(begins, places, 0))
    group = np.cumsum(since % TOGETHER == 0) - 1
    return order[np.argsort(random.permutation(group[-1] + 1)[group], kind="stable")]
