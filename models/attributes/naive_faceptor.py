"""Naive Faceptor's heads: one standard head for each kind of task on several blocks of the encoder.

Qin et al., "Faceptor: A Generalist Model for Face Perception", ECCV 2024 (arXiv:2403.09500), the baseline of Section 3.1.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from models.attributes.heads import linear_rows
from models.attributes.mlca import multi_level_channel_attention, task_subnet
from models.attributes.query_decoder import Rows
from models.attributes.uper_head import PyramidHead
from models.checkpoint import shape_of
from models.spec import StateDict

_VALUE_BLOCKS = (5, 7, 9, 11)
_MAP_BLOCKS = (3, 5, 7, 11)


def _kind(task: str) -> str:
    return task.partition("_")[0]


class ValueHead(nn.Module):
    """Channel attention over four blocks and a classifier for each data set of the kind."""

    def __init__(self, state_dict: StateDict, prefix: str, tasks: Iterable[str]) -> None:
        super().__init__()
        shapes = {task: shape_of(state_dict, f"{prefix}fcs.{task}.weight") for task in tasks}
        self.attention = multi_level_channel_attention(state_dict, f"{prefix}attention.")
        self.feature = task_subnet(shape_of(state_dict, f"{prefix}feature.0.weight")[0])
        self.fcs = nn.ModuleDict({task: nn.Linear(width, count) for task, (count, width) in shapes.items()})

    def forward(self, maps: list[Tensor], tasks: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Return each task's logits (N, rows)."""
        feature = self.feature(self.attention(maps))
        return {task: linear_rows(self.fcs[task], feature, rows) for task, rows in tasks.items()}


class NaiveValueTasks(nn.Module):
    """Age, attributes and expressions."""

    def __init__(self, state_dict: StateDict, tasks: Iterable[str]) -> None:
        super().__init__()
        by_kind: dict[str, list[str]] = {}
        for task in tasks:
            by_kind.setdefault(_kind(task), []).append(task)
        self.heads = nn.ModuleDict(
            {kind: ValueHead(state_dict, f"tasks.heads.{kind}.", names) for kind, names in by_kind.items()}
        )

    def forward(self, maps: list[Tensor], tasks: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Return each task's logits (N, rows) of the outputs that are asked for."""
        levels = [maps[block] for block in _VALUE_BLOCKS]
        logits: dict[str, Tensor] = {}
        for kind, head in self.heads.items():
            if own := {task: rows for task, rows in tasks.items() if _kind(task) == kind}:
                logits |= head(levels, own)
        return logits


class NaiveMapTasks(nn.Module):
    """Parsing and landmarks."""

    def __init__(self, state_dict: StateDict, tasks: Iterable[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {kind: PyramidHead(state_dict, f"tasks.heads.{kind}.") for kind in map(_kind, tasks)}
        )

    def forward(self, maps: list[Tensor], tasks: Mapping[str, Rows]) -> dict[str, Tensor]:
        """Return each task's logit maps (N, K, H/4, W/4) of all its outputs."""
        levels = [maps[block] for block in _MAP_BLOCKS]
        return {task: self.heads[_kind(task)](levels) for task in tasks}
