"""Seeded weights for every recognition network of the table, in the place of real ones."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from models.lora import Adapted
from models.recognition.dlib_resnet import DlibResNet
from models.recognition.elasticface import UNITS, IResNet
from models.table import MODELS
from tests.models.attributes.golden import seeded_checkpoint
from tests.models.recognition.golden import checkpoint
from tests.reference import seeded

Weights = Callable[[], Mapping[str, Any]]


def table(relative: str, gain: float = 1.0) -> Weights:
    return lambda: checkpoint(relative, gain)


def shaped(network: Callable[[], nn.Module], gain: float = 1.0) -> Weights:
    def weights() -> dict[str, Tensor]:
        own, tensor = network().state_dict(), seeded().seeded_tensor
        values = {key: tensor(key, tuple(value.shape)) for key, value in own.items() if value.is_floating_point()}
        return {key: value * gain if value.ndim >= 2 else value for key, value in values.items()}

    return weights


def petalface() -> Mapping[str, Any]:
    quality = {"params": checkpoint("petalface/state_dict_cnniqa.tsv")}
    return checkpoint("petalface/state_dict_swin_iqa_lora8.tsv") | quality


def with_adapters(base: str, weights: Weights) -> Weights:
    def adapted() -> dict[str, Tensor]:
        state = Adapted(MODELS[base].build(MODELS[base].official(weights())), rank=4).state_dict()
        ours, tensor = [key for key in state if "lora_" in key or "gate" in key], seeded().seeded_tensor
        return {**state, **{key: 0.1 * tensor(key, tuple(state[key].shape)) for key in ours}}

    return adapted


# Released layouts where the reference has them. The gains keep activations in a range that half precision holds.
WEIGHTS: dict[str, Weights] = {
    "dlib-resnet": shaped(DlibResNet),
    "dlib-resnet-lora": with_adapters("dlib-resnet", shaped(DlibResNet)),
    "elasticface-arc": table("elasticface/state_dict.tsv", 0.7),
    "facenet-vggface2": table("facenet/state_dict_vggface2.tsv", 1.5),
    "faceptor-base-embedding": lambda: seeded_checkpoint("faceptor", "state_dict_base.tsv"),
    "faceptor-full-embedding": lambda: seeded_checkpoint("faceptor"),
    "faceptor-layer-attention-embedding": lambda: seeded_checkpoint("faceptor", "state_dict_layer_attention.tsv"),
    "faceptor-naive-embedding": lambda: seeded_checkpoint("faceptor", "state_dict_naive.tsv"),
    "iresnet": shaped(lambda: IResNet(UNITS[18]), 0.7),
    "lightcnn-29": table("lightcnn/state_dict_29.tsv"),
    "lightcnn-29v2": table("lightcnn/state_dict_29v2.tsv"),
    "lightcnn-9": table("lightcnn/state_dict_9.tsv"),
    "lightcnn-v4": table("lightcnn/state_dict_v4.tsv"),
    "petalface": petalface,
    "petalface-base": table("petalface/state_dict_swin_base.tsv"),
    "petalface-base-lora": with_adapters("petalface-base", table("petalface/state_dict_swin_base.tsv")),
    "petalface-single": table("petalface/state_dict_swin_lora8_single.tsv"),
    "sface-ir-101": table("sface/state_dict_IR_101.tsv", 0.5),
    "sface-ir-50": table("sface/state_dict_IR_50.tsv", 0.6),
    "sface-mobilefacenet": table("sface/state_dict_MobileFaceNet.tsv", 0.8),
    "swinface-embedding": lambda: seeded_checkpoint("swinface"),
}
SAME_NETWORK = {
    "elasticface-arc-plus": "elasticface-arc",
    "elasticface-cos": "elasticface-arc",
    "elasticface-cos-plus": "elasticface-arc",
    "facenet-casia-webface": "facenet-vggface2",
}
