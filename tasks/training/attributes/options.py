"""What can be chosen of the training of a head."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from models.attributes.head import TRAINABLE


def _trainable(name: str) -> str:
    if name not in TRAINABLE:
        raise ValueError(f"no head can be trained for {name!r}; attributes with classes are {', '.join(TRAINABLE)}")
    return name


class AttributeOptions(BaseModel):
    """Validated options; unknown ones are refused. All of them decide the result but for `against` and `workers`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attribute: Annotated[str, AfterValidator(_trainable)] = Field("expression", description="What the head is to tell.")
    backbone: str = Field("dlib-resnet", description="Recognition model: NAME, NAME@VERSION or NAME@ALIAS.")
    hidden: int = Field(0, ge=0, le=4096, description="Width of a layer between; 0: a linear head.")
    class_weights: float = Field(
        0.5, ge=0, le=1, description="Power of the inverse frequency that weighs classes; 0: none, 1: all alike."
    )
    epochs: int = Field(60, ge=1, description="How often each labelled face is seen.")
    batch_size: int = Field(64, ge=4, description="Faces of one step.")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="Highest learning rate (AdamW, warm-up, cosine).")
    weight_decay: float = Field(0.1, ge=0, le=10, description="Of AdamW.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of the people whose faces are kept for judging.")
    people: str = Field(
        "",
        description="Regular expression: its first group, in a picture's name, says who is on it; else a column identity.",
    )
    leave_out: tuple[str, ...] = Field((), description="Classes whose pictures are not used.")
    against: str | None = Field(None, description="Describing model that the result is compared with.")
    workers: int = Field(1, ge=1, description="Processes that embed together, with a GPU each where there are any.")
    seed: int = Field(0, ge=0, description="Of orders, of which labels a share holds, and of fresh weights.")
