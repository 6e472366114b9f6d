"""What can be chosen of a restorer's training. The defaults are RestoreFormer++'s, as released."""

from enum import IntEnum, StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from models.restoration.restoreformer import Architecture
from tasks.training.options import sharing

# Of the width, by level, down to 16 x 16 positions at every size. Those of 512 are the released ones.
MULTIPLIERS = {64: (1, 2, 4), 128: (1, 2, 4, 4), 256: (1, 2, 4, 4, 8), 512: (1, 2, 2, 4, 4, 8)}


class Size(IntEnum):
    """Sides of the crops in px."""

    PX_64 = 64
    PX_128 = 128
    PX_256 = 256
    PX_512 = 512


class Variant(StrEnum):
    """Which restorer (models.restoration.restoreformer): cross attention at the lowest resolution, or at the two lowest."""

    RESTOREFORMER = "restoreformer"
    PLUS_PLUS = "restoreformer++"


class Degradation(StrEnum):
    """How clean faces are spoilt (models.restoration.degradation)."""

    CLASSIC = "classic"
    EXTENDED = "extended"


class RestorationOptions(BaseModel):
    """Validated options; unknown ones are refused. All of them decide the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant = Field(Variant.PLUS_PLUS, description="RestoreFormer or RestoreFormer++.")
    size: Size = Field(Size.PX_512, description="Side of the crops in px.")
    width: int = Field(64, ge=32, multiple_of=32, description="Channels of the highest resolution.")
    blocks: int = Field(2, ge=1, le=4, description="Residual blocks of a level.")
    codes: int = Field(1024, ge=16, description="Entries of the dictionary.")
    dictionary_steps: int = Field(100_000, ge=1, description="Steps of the first stage.")
    steps: int = Field(200_000, ge=1, description="Steps of the second stage.")
    batch_size: int = Field(16, ge=1, description="Faces of one step, over all workers.")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Highest learning rate (Adam, warm-up, cosine).")
    attention_rate: float = Field(10.0, gt=0, description="Factor of the learning rate of the restorer's attention.")
    degradation: Degradation = Field(Degradation.EXTENDED, description="How faces are spoilt.")
    perceptual: float = Field(1.0, ge=0, description="Weight of ST-LPIPS (the papers': LPIPS).")
    identity: float = Field(1.0, ge=0, description="Weight of the distance to the recognition model's embedding.")
    adversarial: float = Field(0.8, ge=0, description="Weight of the adversary of whole pictures.")
    component: float = Field(1.0, ge=0, description="Weight of the adversaries of eyes and mouth.")
    dictionary_adversaries_from: int = Field(30_000, ge=0, description="Step of the first stage they begin at.")
    adversaries_from: int = Field(10_000, ge=0, description="Step of the second stage they begin at.")
    recogniser: str = Field("dlib-resnet", description="Model of the identity loss, and judge of the result.")
    judge_every: int = Field(1000, ge=1, description="Steps between judgements, which are checkpoints as well.")
    holdout: float = Field(0.1, gt=0, lt=1, description="Share of the people whose faces are kept for judging.")
    workers: int = Field(1, ge=1, description="Processes that train together, with a GPU each where there are any.")
    seed: int = Field(0, ge=0, description="Of order, degradation and fresh weights.")

    @field_validator("workers")
    @classmethod
    def _can_share_a_batch(cls, workers: int, info: ValidationInfo) -> int:
        return sharing(workers, info.data.get("batch_size", workers), least=1)

    @property
    def architecture(self) -> Architecture:
        """RestoreFormer's, with a level less for every halving of the size."""
        widths = tuple(self.width * multiplier for multiplier in MULTIPLIERS[self.size])
        return Architecture(widths, self.blocks, 4 * self.width, self.codes)

    @property
    def model(self) -> str:
        """Name of the entry in the model table that the result belongs to."""
        return self.variant.value if self.size == Size.PX_512 else f"{self.variant.value}-{int(self.size)}"
