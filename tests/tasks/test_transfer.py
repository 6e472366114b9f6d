"""What goes to a device and back is the same, and on a CPU stays where it is."""

import numpy as np
import torch

from tasks.execution.transfer import download, upload


def test_on_a_cpu_nothing_is_copied() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    there = upload(values, "cpu")
    assert np.shares_memory(there.numpy(), values)
    back = download({"a": there, "b": there[1:]})
    assert all(np.shares_memory(array, values) for array in back.values())
    assert np.array_equal(back["b"], values[1:])


def test_nothing_comes_back_of_nothing() -> None:
    assert download({}) == {}
    assert download({"none": torch.zeros(0, 3)})["none"].shape == (0, 3)
