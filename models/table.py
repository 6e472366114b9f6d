"""The model table: the one place that knows which models exist. Adding a model adds one line here."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

from models.attributes import faceptor, swinface
from models.attributes.dlib_age import DLIB_AGE
from models.attributes.dlib_gender import DLIB_GENDER
from models.attributes.facexformer import FACEXFORMER
from models.attributes.head import TRAINABLE, headed
from models.attributes.mini_xception import MINI_XCEPTION
from models.detection.mtcnn import MTCNN_SPEC
from models.lora import adapted
from models.recognition import elasticface, facenet, lightcnn, petalface, sface
from models.recognition.dlib_resnet import DLIB_RESNET
from models.restoration import restoreformer
from models.restoration.dfdnet import DFDNET
from models.restoration.real_esrgan import REAL_ESRGAN_X4PLUS
from models.restoration.st_lpips import ST_LPIPS
from models.spec import ModelSpec, Role

# Backbones that low-rank adapters fit: their convolutions and linear layers see the rows of one image together.
ADAPTABLE = (
    DLIB_RESNET,
    *elasticface.SPECS,
    *facenet.SPECS,
    *lightcnn.SPECS,
    petalface.PETALFACE_BASE,
    *sface.SPECS,
)
SPECS: tuple[ModelSpec, ...] = (
    *(adapted(spec) for spec in ADAPTABLE),
    DFDNET,
    DLIB_AGE,
    DLIB_GENDER,
    DLIB_RESNET,
    *elasticface.SPECS,
    *facenet.SPECS,
    *lightcnn.SPECS,
    *petalface.SPECS,
    *sface.SPECS,
    *faceptor.SPECS,
    FACEXFORMER,
    MINI_XCEPTION,
    MTCNN_SPEC,
    REAL_ESRGAN_X4PLUS,
    *swinface.SPECS,
    *restoreformer.SPECS,
    ST_LPIPS,
)


class UnknownModel(KeyError):
    """No model of the table is called so."""


def _by_name(specs: Iterable[ModelSpec]) -> Mapping[str, ModelSpec]:
    table: dict[str, ModelSpec] = {}
    for spec in specs:
        if spec.name in table:
            raise ValueError(f"two models are called {spec.name!r}: names identify a model in the catalog for ever")
        table[spec.name] = spec
    return MappingProxyType(table)


MODELS = _by_name(SPECS)


def find(name: str) -> ModelSpec | None:
    """Look a model up by name; heads that can be trained, MODEL-ATTRIBUTE, are entries too, without a line each."""
    base, _, attribute = name.rpartition("-")
    if name in MODELS or base not in MODELS or attribute not in TRAINABLE or MODELS[base].role is not Role.EMBED:
        return MODELS.get(name)
    return headed(MODELS[base], TRAINABLE[attribute])


def spec(name: str) -> ModelSpec:
    """Look a model up by name, heads included.

    Raises:
        UnknownModel: with the names that are nearest to it.
    """
    found = find(name)
    if found is None:
        near = get_close_matches(name, MODELS, n=3, cutoff=0.4) or [n for n in sorted(MODELS) if n.startswith(name)][:3]
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownModel(
            f"no model is called {name!r}.{meant} 'visage models list' shows all; heads on recognition models, like "
            "dlib-resnet-expression, can be trained"
        )
    return found


def listed(registered: Iterable[str]) -> list[ModelSpec]:
    """Every model of the table, and of the heads those that are registered, by role and name."""
    heads = {found.name: found for name in registered if name not in MODELS and (found := find(name)) is not None}
    return sorted([*MODELS.values(), *heads.values()], key=lambda spec: (spec.role.value, spec.name))
