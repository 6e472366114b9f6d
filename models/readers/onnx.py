"""Read the learned tensors of an ONNX file."""

from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper
from torch import Tensor

from models.spec import CheckpointMismatch


def read_initializers(path: Path) -> dict[str, Tensor]:
    """Read all float32 initialisers by name. Integer ones (paddings, shapes) are part of the graph, not of the weights.

    Raises:
        CheckpointMismatch: if the file is no complete ONNX model, or keeps its tensors outside.
    """
    again = "It is damaged or no ONNX model: fetch it again."
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise CheckpointMismatch(f"{path.name}: {error}. {again}") from error
    tensors = {}
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise CheckpointMismatch(f"{path.name}: {initializer.name} lies in another file. {again}")
        if initializer.data_type == onnx.TensorProto.FLOAT:
            try:
                tensors[initializer.name] = torch.from_numpy(
                    np.array(numpy_helper.to_array(initializer), dtype=np.float32)
                )
            except ValueError as error:
                raise CheckpointMismatch(f"{path.name}: {initializer.name}: {error}. {again}") from error
    if not tensors:
        raise CheckpointMismatch(f"{path.name}: no weights inside. {again}")
    return tensors
