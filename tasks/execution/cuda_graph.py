"""CUDA graphs: a network's forward of a full batch, recorded once and replayed in one call.

A forward is a hundred calls and more, and on a fast card a small network takes longer to call than to compute.
"""

import logging
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from models.spec import ModelSpec

log = logging.getLogger("visage")
WARM_UP = 3  # forwards before the record, in which libraries choose their kernels and set their workspaces up

Network = Callable[..., Any]


def recorded(network: Network, spec: ModelSpec, count: int, device: str, *options: Any) -> Network:
    """Return `network`, or on a GPU what does the same and replays a record for batches of `count` crops.

    `network` takes what the preprocessing of its `spec` gives and `options`, and returns a tensor or a mapping of tensors. It
    must not ask the GPU for a value, nor copy one to it. To be called before other threads of this process work on the GPU.
    """
    if torch.device(device).type != "cuda":
        return network
    try:
        return Recorded(network, example(spec, count, device), *options)
    except torch.OutOfMemoryError:
        log.warning("not enough memory on the GPU for a record of %s: it computes without one", spec.name)
        return network


def example(spec: ModelSpec, count: int, device: str) -> Tensor:
    """A batch of `count` black crops (count, C, S, S) float32 on `device`, in the layout that preprocessing gives."""
    assert spec.preprocess is not None
    size = spec.preprocess.template.size
    return spec.preprocess(torch.zeros(count, size, size, 3, dtype=torch.uint8, device=device))


class Recorded:
    """A network with the record of its forward of one shape with some options; whatever else comes is computed as ever.

    The record reads and writes always the same memory: threads take turns, and each gets a copy of the output.
    """

    def __init__(self, network: Network, example: Tensor, *options: Any) -> None:
        self.network, self.options = network, options
        self.input, self.lock = example.clone(), Lock()
        self.replay, self.output = record(lambda: network(self.input, *options))

    def __call__(self, batch: Tensor, *options: Any) -> Any:
        if batch.shape != self.input.shape or options != self.options:
            return self.network(batch, *options)
        with self.lock, torch.inference_mode():
            self.input.copy_(batch)
            self.replay()
            return _copied(self.output)


def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record what `work` does on the GPU. Returns what does it again, and the output that is written each time anew."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = work()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, output


def _copied(output: Any) -> Any:
    if isinstance(output, Mapping):
        return {name: tensor.clone() for name, tensor in output.items()}
    return output.clone()
