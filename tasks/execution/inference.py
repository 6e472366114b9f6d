"""A network as the stages run it: on its device, in the memory layout and the precision that it is fastest in there."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.model_version import ModelVersion, load_network


class InBfloat16(nn.Module):
    """A part of a network that computes in bfloat16 between neighbours that compute in float32."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.part(x.to(torch.bfloat16))
        return output.float()


def load_for_inference(version: ModelVersion, device: str = "cpu") -> nn.Module:
    """Load a version's network onto `device`, in eval mode, as the stages run it.

    Whatever computes in float32 on a GPU does so in full from then on, in all of this process: torch's default for convolutions
    is TF32, which keeps three digits, and by which a face could come to lie on the other side of a threshold.

    Raises:
        WeightsError, CheckpointMismatch: as `load_network`.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return for_inference(load_network(version).to(device), bfloat16_parts(version, device))


def for_inference(network: nn.Module, bfloat16: Sequence[str] = ()) -> nn.Module:
    """Put a network's convolutions in channels-last order and the named parts in bfloat16; returns the network itself."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for name in bfloat16:
        network.set_submodule(name, InBfloat16(network.get_submodule(name)))
    return network


def bfloat16_parts(version: ModelVersion, device: str) -> tuple[str, ...]:
    """The parts of a version's network that compute in bfloat16 on `device` of this machine: those that the model table names
    (`ModelSpec.bfloat16`) where the device does, unless the version asks for float32."""
    return version.spec.bfloat16 if version.precision == "auto" and has_bfloat16(device) else ()


def has_bfloat16(device: str) -> bool:
    """Whether `device` multiplies in bfloat16 itself. Where torch would only imitate it, float32 is faster."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
