"""Compare a network's intermediates with the stages of a golden file, so that a mismatch says where it begins."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Summary = dict[str, npt.NDArray[Any]]
Tap = tuple[str, Callable[[Any, Any], Tensor]]  # a module's name, and what of (inputs, output) to look at


def summary(values: Tensor) -> Summary:
    """What a golden file keeps of a tensor: shape, mean, sample deviation, first 64 values."""
    values = values.detach()
    return {
        "shape": np.array(values.shape),
        "mean": values.mean().numpy(),
        "std": values.std().numpy(),
        "first64": values.flatten()[:64].numpy().copy(),
    }


def stages(golden: Any) -> dict[str, Summary]:
    """Return the stages of a golden file by module name, in execution order."""
    found: dict[str, Summary] = {}
    for key in golden.files:
        if key.startswith("stage."):
            _, _, rest = key.split(".", 2)
            name, statistic = rest.rsplit(".", 1)
            found.setdefault(name, {})[statistic] = golden[key]
    return found


@contextmanager
def tapped(network: nn.Module, taps: Mapping[str, Tap]) -> Iterator[dict[str, Summary]]:
    """Record, under each tap's name, a summary of what its module takes or returns while the block runs."""
    seen: dict[str, Summary] = {}

    def hook(name: str, read: Callable[[Any, Any], Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: seen.__setitem__(name, summary(read(inputs, output)))

    handles = [
        network.get_submodule(module).register_forward_hook(hook(name, read)) for name, (module, read) in taps.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def assert_same(seen: Summary, golden: Summary, name: str, tolerance: float = 1e-4) -> None:
    """Every statistic within `tolerance`, relative to the golden's largest known value or deviation."""
    assert tuple(seen["shape"]) == tuple(golden["shape"]), name
    scale = max(float(np.abs(golden["first64"]).max()), float(golden["std"]))
    for statistic in ("first64", "mean", "std"):
        np.testing.assert_allclose(
            seen[statistic], golden[statistic], rtol=0, atol=tolerance * scale, err_msg=f"{name} {statistic}"
        )


def assert_output(output: Tensor, golden: Any, tolerance: float = 1e-4) -> None:
    """The output (1, 3, 512, 512) against `output_sub`, `output_mean`, `output_std`, relative to its largest value."""
    scale = float(np.abs(golden["output_sub"]).max())
    seen = {"sub": output[0, :, ::8, ::8].numpy(), "mean": output.mean().numpy(), "std": output.std().numpy()}
    for statistic, values in seen.items():
        np.testing.assert_allclose(
            values, golden[f"output_{statistic}"], rtol=0, atol=tolerance * scale, err_msg=statistic
        )
    np.testing.assert_allclose(
        [output.min(), output.max()], [golden["output_min"], golden["output_max"]], atol=tolerance * scale
    )
