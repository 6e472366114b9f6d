"""What can be chosen of a training."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from models.losses import LOSSES

LEAST_SHARE = 2  # faces of a batch for each worker: batch normalisation of the embedding needs two to compare


def _known_loss(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"no loss is called {name!r}; known: {', '.join(LOSSES)}")
    return name


def sharing(workers: int, batch_size: int, least: int) -> int:
    """Return `workers` if they can share a batch evenly, with `least` faces or more for each.

    Their gradients are averaged and their tensors exchanged, as if each had as many faces.
    """
    if batch_size % workers or batch_size < workers * least:
        fitting = workers * max(least, -(-batch_size // workers))
        raise ValueError(
            f"so many workers cannot share a batch of {batch_size} faces evenly, with at least {least} for each: "
            f"take --batch-size {fitting}, or other workers"
        )
    return workers


class TrainingOptions(BaseModel):
    """Validated options of a training; unknown ones are refused. All of them decide the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field("dlib-resnet", description="Model to start from: NAME, NAME@VERSION or NAME@ALIAS.")
    loss: Annotated[str, AfterValidator(_known_loss)] = Field("cosface", description="Loss over the identities.")
    lora: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Rank of adapters for low resolution; the backbone itself is then left as it is.",
    )
    epochs: int = Field(16, ge=1, description="How often each face is seen.")
    batch_size: int = Field(32, ge=4, description="Faces of one step, over all workers.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Highest learning rate (AdamW, warm-up, cosine).")
    holdout: float = Field(
        0.1, gt=0, lt=1, description="Share of the people with two faces or more that is kept for verification."
    )
    workers: int = Field(1, ge=1, description="Processes that train together, with a GPU each where there are any.")
    seed: int = Field(0, ge=0, description="Of order, degradation and fresh weights.")

    @field_validator("workers")
    @classmethod
    def _can_share_a_batch(cls, workers: int, info: ValidationInfo) -> int:
        return sharing(workers, info.data.get("batch_size", workers * LEAST_SHARE), LEAST_SHARE)
