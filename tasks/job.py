"""A job: everything an actor needs to know, small enough to send anywhere."""

from dataclasses import dataclass

from infra.catalog.faces import Contract
from infra.catalog.work.key_range import EVERY_KEY, KeyRange
from infra.settings import Settings
from infra.storage import Store, open_store
from models.template import Template
from tasks.model_version import ModelVersion
from tasks.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One run's work on one collection."""

    settings: Settings
    collection_id: int
    collection_uri: str
    run_id: int
    recipe: Recipe
    contract: Contract
    device: str
    least_similarity: float | None
    """Cosine at which strangers are accepted once in a thousand; None while the recognition model is not calibrated."""
    keys: KeyRange = EVERY_KEY
    serving_id: int | None = None
    """Row of the embedding version that queries used when the run began; None before the first complete one."""
    companion: ModelVersion | None = None
    """The version that faces are embedded with besides, while an upgrade is under way or may be rolled back."""

    @property
    def templates(self) -> tuple[Template, ...]:
        """The views of a face that the stages need."""
        preprocess = None if self.companion is None else self.companion.spec.preprocess
        if preprocess is None or preprocess.template in self.recipe.templates:
            return self.recipe.templates
        return (*self.recipe.templates, preprocess.template)

    def photographs(self) -> Store:
        """The store that the collection's photographs lie in."""
        return open_store(self.collection_uri, self.settings.storage_options)

    def crops(self) -> Store:
        """The store that crops are kept in."""
        return open_store(self.settings.crops_uri, self.settings.storage_options)
