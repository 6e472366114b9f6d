"""The steps of a restorer's training: first those of the dictionary, then those of the restorer, in one run.

Everything random in a step follows from seed, step and worker alone, so a training that was killed takes the very steps that
it would have taken. Workers average their gradients by hand: adversaries take turns with the network, in one step.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from infra.tracking import Run, reopen
from models.restoration.degradation import CLASSIC, EXTENDED, Recipe, degrade, draw, target
from models.restoration.vq_autoencoder import perplexity
from models.spec import ModelSpec
from models.template import LandmarkTemplate
from tasks.model_version import ModelVersion, load_network
from tasks.training import collection
from tasks.training.loop import MAX_GRADIENT, Diverged, Progress, loop, schedule
from tasks.training.restoration.judge import Judge, as_input, held_out
from tasks.training.restoration.objective import Faces, Objective, Recogniser, boxes_of
from tasks.training.restoration.options import Degradation, RestorationOptions

BETAS = (0.5, 0.9)
CLEAN = Recipe(
    shift=EXTENDED.shift, grey=EXTENDED.grey
)  # of it only what moves the target: the dictionary sees clean faces
RECIPES = {Degradation.CLASSIC: CLASSIC, Degradation.EXTENDED: EXTENDED}
REVIVAL_STEPS = 50  # codes that none of so many steps has used are replaced
FIRST_LATENTS = 8  # batches of faces whose latents the codebook begins with


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. `rows` are trained on, `held` are kept; `folder` must be reachable from every worker."""

    options: RestorationOptions
    spec: ModelSpec
    perceptual: ModelVersion | None
    recogniser: ModelVersion
    faces: collection.Faces
    rows: NDArray[np.int64]
    held: NDArray[np.int64]
    folder: Path
    tracking_uri: str
    tracking_run: str
    threads: int

    @property
    def steps(self) -> int:
        return self.options.dictionary_steps + self.options.steps

    @property
    def template(self) -> LandmarkTemplate:
        assert self.spec.preprocess is not None
        assert isinstance(self.spec.preprocess.template, LandmarkTemplate)
        return self.spec.preprocess.template


def work(job: Job) -> None:
    """Train from the last checkpoint, or from the beginning if there is none. Ray Train runs this in every worker."""
    loop(partial(Training, job), job.threads)


class Training:
    """The state of a restorer's training in one worker: `step` steps of both stages are taken."""

    def __init__(self, job: Job, rank: int, workers: int, device: torch.device) -> None:
        self.job, self.rank, self.workers, self.device = job, rank, workers, device
        self.crops = job.faces.crops()
        self.step, self.progress = 0, Progress(job.folder, rank)
        self.sums: dict[str, float] = {}
        self.summed = 0
        self.history: list[dict[str, float]] = []
        self.perceptual = None if job.perceptual is None else load_network(job.perceptual).to(device)
        self.recogniser = self._recogniser()
        self.used = torch.zeros(job.options.codes, dtype=torch.bool, device=device)
        self.first_judge: Judge | None = None
        torch.manual_seed(job.options.seed)
        self._enter(Objective(job.options, None, *self._judges()))

    @property
    def over(self) -> bool:
        return self.step >= self.job.steps

    @property
    def pauses(self) -> bool:
        return (
            self.step in (self.job.options.dictionary_steps, self.job.steps)
            or self.step % self.job.options.judge_every == 0
        )

    def begin(self) -> None:
        """Let the codebook begin with latents of faces: vectors of chance would hardly ever be the nearest."""
        with torch.no_grad():
            latents = [self._latents(self._batch(-1 - i).seen) for i in range(FIRST_LATENTS)]
            self._revive(torch.ones_like(self.used), torch.cat(latents), torch.Generator().manual_seed(0))

    def join(self) -> None:
        """Go on from the first worker's weights: averaged gradients keep equal networks equal, but make none equal."""
        if self.workers > 1:
            for value in self.objective.state_dict().values():
                torch.distributed.broadcast(value, 0)

    def take(self) -> None:
        """Take the next step; the first of the second stage begins it."""
        options = self.job.options
        if self.step == options.dictionary_steps and not self.objective.restores:
            self._begin_restorer()
            self.join()
        start, steps = (
            (options.dictionary_steps, options.steps) if self.objective.restores else (0, options.dictionary_steps)
        )
        torch.manual_seed(np.random.SeedSequence([options.seed, self.step, self.rank]).generate_state(1).item())
        rate = options.learning_rate * schedule((self.step - start + 0.5) / steps)
        faces, contested = self._batch(self.step), self.objective.contested(self.step - start)
        terms, made = self.objective(faces, contested)
        if not bool(terms["loss"].isfinite()):
            raise Diverged(
                f"the loss is not finite after {self.step} steps: take a smaller --learning-rate than {options.learning_rate:g}"
            )
        self._descend(self.optimizer, terms["loss"], rate)
        if contested:
            self._descend(self.adversaries, self.objective.adversaries_loss(faces, made), rate)
        self.step += 1
        if not self.objective.restores:
            self._keep_codes_alive(faces)
        self.summed += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.progress.tell(self.step, last=self.over)

    def judge(self) -> None:
        """On the first worker: measure what becomes of held-out faces, and log it with the mean terms of the loss."""
        if self.rank == 0:
            judge, network = self._judge(), self.objective.network.eval()
            run = reopen(self.job.tracking_uri, self.job.tracking_run)
            if self.objective.restores:
                metrics, picture = judge.restorer(network)
                run.bytes(_png(picture), f"grids/{self.step:07}.png")
            else:
                metrics = judge.dictionary(network) | {"dictionary/codes_in_use": self._codes_in_use(judge)}
            network.train()
            self._log(run, metrics)
            self.history.append({"step": float(self.step), **metrics})
        self.sums, self.summed = {}, 0

    def save(self, path: Path) -> bool:
        """On the first worker: write all that the next steps depend on. Tells whether it did."""
        self._share_used()
        if self.rank == 0:
            state = {"step": self.step, "restores": self.objective.restores, "history": self.history, "used": self.used}
            parts = {name: getattr(self, name).state_dict() for name in ("objective", "optimizer", "adversaries")}
            torch.save({**state, **parts}, path)
        return self.rank == 0

    def resume(self, path: Path) -> None:
        """Go on from where `save` was called."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.history, self.used = state["step"], state["history"], state["used"]
        if state["restores"]:
            self._begin_restorer()
        for name in ("objective", "optimizer", "adversaries"):
            getattr(self, name).load_state_dict(state[name])

    def _begin_restorer(self) -> None:
        torch.manual_seed(self.job.options.seed)
        self._enter(Objective(self.job.options, self.objective.network, *self._judges()))

    def _enter(self, objective: Objective) -> None:
        self.objective = objective.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(objective.trained, betas=BETAS)
        self.adversaries = torch.optim.Adam(objective.adversaries, betas=BETAS)

    def _judges(self) -> tuple[nn.Module | None, nn.Module | None]:
        options = self.job.options
        return (self.perceptual if options.perceptual else None), (self.recogniser if options.identity else None)

    def _recogniser(self) -> Recogniser:
        spec = self.job.recogniser.spec
        assert spec.preprocess is not None
        network = load_network(self.job.recogniser)
        return Recogniser(network, spec.preprocess, self.job.template).to(self.device)

    def _judge(self) -> Judge:
        if self.first_judge is None:
            held = held_out(self.crops, self.job.held.tolist())
            self.first_judge = Judge(held, self.perceptual, self.recogniser, self.device)
        return self.first_judge

    def _codes_in_use(self, judge: Judge) -> float:
        with torch.inference_mode():
            quantised, _ = self.objective.network.encode(as_input(judge.held.clean).to(self.device))
        return float(perplexity(quantised.indices.cpu(), self.job.options.codes))

    def _log(self, run: Run, metrics: dict[str, float]) -> None:
        means = {f"train/{name}": total / self.summed for name, total in self.sums.items()} if self.summed else {}
        run.metrics({**metrics, **means}, step=self.step)

    def _batch(self, step: int) -> Faces:
        """This worker's faces of a step (the steps before the first are other faces, too)."""
        options, template = self.job.options, self.job.template
        rng = np.random.default_rng([options.seed, step + 2**20, self.rank])
        rows = self._rows(step, rng)
        recipe = RECIPES[options.degradation] if self.objective.restores else CLEAN
        degradations = [draw(rng, recipe, template.size) for _ in rows]
        clean, seen = [], []
        for row, degradation in zip(rows, degradations, strict=True):
            face = torch.from_numpy(np.array(self.crops[row])).permute(2, 0, 1).float() / 255
            clean.append(target(face, degradation))
            seen.append(degrade(face, degradation) if self.objective.restores else clean[-1])
        return Faces(self._stacked(clean), self._stacked(seen), boxes_of(template, degradations).to(self.device))

    def _rows(self, step: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Faces in an order of chance, each as often as any other."""
        size, rows = self.job.options.batch_size, self.job.rows
        if step < 0:
            return rng.choice(rows, size)
        places = np.arange(step * size, (step + 1) * size)
        epochs, within = np.divmod(places, len(rows))
        orders = {
            epoch: np.random.default_rng([self.job.options.seed, epoch]).permutation(rows) for epoch in set(epochs)
        }
        drawn = np.array([orders[epoch][place] for epoch, place in zip(epochs, within, strict=True)])
        return np.array_split(drawn, self.workers)[self.rank]

    def _stacked(self, faces: Sequence[Tensor]) -> Tensor:
        return (torch.stack(list(faces)) * 2 - 1).to(self.device).contiguous(memory_format=torch.channels_last)

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
        optimizer.zero_grad()
        loss.backward()
        parameters: list[Tensor] = [value for group in optimizer.param_groups for value in group["params"]]
        self._average(value.grad for value in parameters)
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()

    def _average(self, gradients: Iterable[Tensor | None]) -> None:
        if self.workers > 1:
            for gradient in gradients:
                if gradient is not None:
                    torch.distributed.all_reduce(gradient)
                    gradient.div_(self.workers)

    def _latents(self, faces: Tensor) -> Tensor:
        """Latents (positions, channels) before they are quantised."""
        network = self.objective.network
        return network.quant_conv(network.encoder(faces)[0]).permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def _keep_codes_alive(self, faces: Faces) -> None:
        """Replace codes that no face of the last steps was near to, by latents of this step (Dhariwal et al. 2020)."""
        latents = self._latents(faces.seen)
        self.used[torch.cdist(latents, self.objective.network.quantize.embedding.weight).argmin(dim=1)] = True
        late = self.step > self.job.options.dictionary_steps // 2  # from there on the dictionary settles
        if self.step % REVIVAL_STEPS == 0 and not late:
            self._share_used()
            if self.workers > 1:
                torch.distributed.broadcast(latents, 0)
            self._revive(~self.used, latents, torch.Generator().manual_seed(self.step))
            self.used = torch.zeros_like(self.used)

    def _share_used(self) -> None:
        """Count a code as used if any worker has used it."""
        if self.workers > 1:
            torch.distributed.all_reduce(used := self.used.float())
            self.used = used > 0

    def _revive(self, dead: Tensor, latents: Tensor, generator: torch.Generator) -> None:
        count = int(dead.sum())
        chosen = torch.randint(len(latents), (count,), generator=generator).to(latents.device)
        self.objective.network.quantize.embedding.weight[dead] = latents[chosen]


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()
