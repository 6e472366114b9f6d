"""Files are read completely or refused with the reason: no byte too few, none too many."""

import argparse
import contextlib
import io
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.readers import dlib, keras, ncnn
from models.readers.checkpoint import read_checkpoint
from models.readers.onnx import read_initializers
from models.spec import CheckpointMismatch

RNG = np.random.default_rng(7)


# dlib: a writer of its own for the published encodings, and the smallest file with every kind of layer.


def integer(value: int) -> bytes:
    magnitude = abs(value).to_bytes(max(1, (abs(value).bit_length() + 7) // 8), "little")
    return bytes([len(magnitude) | (0x80 if value < 0 else 0)]) + magnitude


def integers(*values: int) -> bytes:
    return b"".join(map(integer, values))


def real(value: float) -> bytes:
    fraction, exponent = math.frexp(value)
    return integers(int(fraction * 2**53), exponent - 53 if value else 0)


def string(value: str) -> bytes:
    return integer(len(value)) + value.encode()


def tensor(values: np.ndarray) -> bytes:
    if not values.size:
        return integers(2, 0, 0, 0, 0)
    return integers(2, values.size, 1, 1, 1) + values.astype("<f4").tobytes()


def alias(*shape: int) -> bytes:
    return integers(1, *shape)


NO_STATE = b"000" + 3 * integers(2, 0, 0, 0, 0)
FACTORS = real(1.0) + real(1.0) + real(1.0) + real(0.0)
WEIGHT, BIAS = RNG.normal(size=(4, 3, 2, 2)).astype("f4"), RNG.normal(size=4).astype("f4")
SCALE, OFFSET = RNG.normal(size=4).astype("f4"), RNG.normal(size=4).astype("f4")
MATRIX = RNG.normal(size=(4, 2)).astype("f4")


def dlib_file() -> bytes:
    convolution = string("con_4") + tensor(np.concatenate([WEIGHT.ravel(), BIAS])) + integers(4, 2, 2, 1, 1, 0, 0)
    convolution += alias(4, 3, 2, 2) + alias(1, 4, 1, 1) + FACTORS
    affine = string("affine_") + tensor(np.concatenate([SCALE, OFFSET])) + 2 * alias(1, 4, 1, 1) + integer(0)
    pool = string("max_pool_2") + integers(3, 3, 2, 2, 0, 0)
    matrix = string("fc_2") + integers(2, 4) + tensor(MATRIX.ravel()) + alias(4, 2, 1, 1) + alias(0, 0, 0, 0)
    matrix += integer(1) + FACTORS
    data = integer(1) + string("loss_metric_2") + real(0.04) + real(0.6) + integers(2, 1, 2, 2, 2, 3)
    data += string("input_rgb_image_sized") + real(122.78199768) + real(117.00099945) + real(104.29799652)
    data += integers(150, 150) + convolution + NO_STATE + integer(1)
    for layer in (affine, string("relu_"), pool, matrix):
        data += layer + NO_STATE
    return data


def read_dlib(path: Path) -> object:
    return dlib.read_layers(path)


# ncnn: an odd number of float16 weights, so that padding occurs, then float32.


PARAM = """7767517
4 4
Input data 0 1 data 0=8 1=8 2=3
Convolution first 1 1 data a 0=1 1=3 4=1 5=1 6=27
Split copy 1 2 a b c
Convolution second 1 1 b output 0=2 1=1 5=1 6=2
"""
HALVES, SINGLES = RNG.normal(size=27).astype("<f2"), RNG.normal(size=2).astype("<f4")
BIN = (
    struct.pack("<I", 0x01306B47) + HALVES.tobytes() + b"\0\0" + struct.pack("<f", 0.5)
    + struct.pack("<I", 0) + SINGLES.tobytes() + struct.pack("<2f", 1.5, -1.5)
)  # fmt: skip


def read_ncnn(path: Path) -> object:
    (path.parent / "model.param").write_text(PARAM)
    return ncnn.read_convolutions(path.parent / "model.param", path)


def read_ncnn_text(path: Path) -> object:
    (path.parent / "model.bin").write_bytes(BIN)
    return ncnn.read_convolutions(path, path.parent / "model.bin")


def onnx_file() -> bytes:
    tensors = [numpy_helper.from_array(WEIGHT, "weights"), numpy_helper.from_array(np.arange(8), "pads")]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["out"])], "g", [images], [images], tensors)
    return helper.make_model(graph).SerializeToString()


Reader = Callable[[Path], object]


@pytest.mark.parametrize(("reader", "data"), [(read_dlib, dlib_file()), (read_ncnn, BIN)])
def test_file_cut_at_any_byte_is_refused(tmp_path: Path, reader: Reader, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    reader(path)
    whole_layers = 0
    for end in range(len(data)):
        path.write_bytes(data[:end])
        try:
            reader(path)
            whole_layers += 1
        except CheckpointMismatch as error:
            assert "file" in str(error)  # noqa: PT017  the message is the point, in every case
    assert whole_layers <= 4  # a dlib file doesn't say how many layers follow: those who know the network count them


@pytest.mark.parametrize(
    ("reader", "data"),
    [(read_dlib, dlib_file()), (read_ncnn, BIN), (read_ncnn_text, PARAM.encode()), (read_initializers, onnx_file())],
)
def test_bytes_after_the_end_are_refused(tmp_path: Path, reader: Reader, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data + b"\x0f\0\0\0")
    with pytest.raises(CheckpointMismatch, match="file"):
        reader(path)


@pytest.mark.parametrize("reader", [read_dlib, read_ncnn, read_ncnn_text, read_initializers, keras.read_weights])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 some other format", b"\x89HDF\r\n\x1a\n" + 200 * b"\xff"])
def test_another_format_is_refused_with_what_to_do(tmp_path: Path, reader: Reader, data: bytes) -> None:
    path = tmp_path / "weights.xyz"
    path.write_bytes(data)
    with pytest.raises(CheckpointMismatch, match=r"weights\.xyz.*fetch it again"):
        reader(path)


@pytest.mark.parametrize(
    ("reader", "data"), [(read_dlib, dlib_file()), (read_ncnn, BIN), (read_ncnn_text, PARAM.encode())]
)
@given(st.data())
def test_damage_is_refused_or_changes_values_only(
    tmp_path_factory: pytest.TempPathFactory, reader: Reader, data: bytes, draw: st.DataObject
) -> None:
    position, byte = draw.draw(st.integers(0, len(data) - 1)), draw.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[:position] + bytes([byte]) + data[position + 1 :])
    with contextlib.suppress(CheckpointMismatch):
        reader(path)


def test_dlib_layers_come_with_their_values(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(dlib_file())
    convolution, affine, relu, pool, matrix = dlib.read_layers(tmp_path / "file")
    assert convolution.form == ("con_4", (2, 2), (1, 1), (0, 0))
    assert np.array_equal(convolution.weight, WEIGHT)
    assert np.array_equal(convolution.bias, BIAS)
    assert np.array_equal(affine.weight, SCALE)
    assert np.array_equal(affine.bias, OFFSET)
    assert relu.form == ("relu_", (0, 0), (1, 1), (0, 0))
    assert pool.form == ("max_pool_2", (3, 3), (2, 2), (0, 0))
    assert np.array_equal(matrix.weight, MATRIX)


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_dlib_integers_are_read_back(tmp_path_factory: pytest.TempPathFactory, value: int) -> None:
    path = tmp_path_factory.getbasetemp() / "integer"
    path.write_bytes(integer(value))
    stream = dlib.Stream(path)
    assert stream.integer() == value
    assert stream.at_end


def test_dlib_encodings_are_those_of_the_library(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes.fromhex("0100 0196 810A 028012 039A9999 8118 0101 02007D".replace(" ", "")))
    stream = dlib.Stream(tmp_path / "file")
    assert [stream.integer() for _ in range(4)] == [0, 150, -10, 4736]
    assert stream.real() == pytest.approx(0.6, rel=1e-7)
    assert stream.real() == math.inf


def test_dlib_layer_of_unknown_kind_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(dlib_file().replace(b"relu_", b"gelu_"))
    with pytest.raises(CheckpointMismatch, match=r"file, byte \d+: a layer of unknown kind 'gelu_'"):
        dlib.read_layers(tmp_path / "file")


def test_ncnn_reads_halves_and_singles(tmp_path: Path) -> None:
    (tmp_path / "model.param").write_text(PARAM)
    (tmp_path / "model.bin").write_bytes(BIN)
    first, second = ncnn.read_convolutions(tmp_path / "model.param", tmp_path / "model.bin")
    assert (first.name, first.weight.shape, second.weight.shape) == ("first", (1, 3, 3, 3), (2, 1, 1, 1))
    assert np.array_equal(first.weight.flatten(), HALVES.astype("f4"))
    assert np.array_equal(second.weight.flatten(), SINGLES)
    assert (first.bias.tolist(), second.bias.tolist()) == ([0.5], [1.5, -1.5])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (PARAM.replace("7767517", "7767516"), "begins with '7767516'"),
        (PARAM.replace("4 4", "5 4"), "4 layers where 5 belong"),
        (PARAM.replace("Split copy", "Deconvolution copy"), "Deconvolution are not read"),
        (PARAM.replace("6=27", "6=26"), "26 weights for 1 filters of 3 x 3"),
        (PARAM.replace("5=1 6=27", "6=27"), "not the text of an ncnn model"),
    ],
)
def test_ncnn_text_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, wrong: str, reason: str) -> None:
    (tmp_path / "model.param").write_text(wrong)
    with pytest.raises(CheckpointMismatch, match=reason):
        read_ncnn_text(tmp_path / "model.param")


def test_ncnn_quantised_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(struct.pack("<I", 0x000D4B38) + BIN[4:])
    with pytest.raises(CheckpointMismatch, match="first is stored as 0x000d4b38"):
        read_ncnn(tmp_path / "file")


def test_onnx_gives_weights_but_no_shapes_and_paddings(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(onnx_file())
    tensors = read_initializers(tmp_path / "file")
    assert list(tensors) == ["weights"]
    assert np.array_equal(tensors["weights"], WEIGHT)


def test_keras_kernels_come_in_torch_s_order(tmp_path: Path) -> None:
    kernel, depthwise = RNG.normal(size=(3, 3, 2, 5)).astype("f4"), RNG.normal(size=(3, 3, 5, 1)).astype("f4")
    with h5py.File(tmp_path / "file", "w") as file:
        file["model_weights/conv2d_1/conv2d_1_1/kernel:0"] = kernel
        file["model_weights/separable_conv2d_1/separable_conv2d_1_1/depthwise_kernel:0"] = depthwise
        file["model_weights/batch_normalization_1/batch_normalization_1_1/gamma:0"] = np.ones(5, "f4")
        file["optimizer_weights/Adam/iterations:0"] = np.zeros(1)
    weights = keras.read_weights(tmp_path / "file")
    assert weights.keys() == {"conv2d_1.kernel", "separable_conv2d_1.depthwise_kernel", "batch_normalization_1.gamma"}
    assert weights["conv2d_1.kernel"][4, 1, 2, 0] == kernel[2, 0, 1, 4]
    assert weights["separable_conv2d_1.depthwise_kernel"][4, 0, 2, 1] == depthwise[2, 1, 4, 0]


def test_checkpoint_in_several_files_is_read_together(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "last.ckpt")
    safetensors.torch.save_file({"bias": torch.zeros(2)}, tmp_path / "more.safetensors")
    (tmp_path / "dictionary").mkdir()
    np.save(tmp_path / "dictionary" / "nose.npy", np.arange(3))
    found = read_checkpoint([tmp_path / "last.ckpt", tmp_path / "more.safetensors", tmp_path / "dictionary"])
    assert found.keys() == {"state_dict", "epoch", "bias", "nose"}
    assert found["state_dict"]["weight"].tolist() == [1, 1]
    assert found["nose"].tolist() == [0, 1, 2]


class Executed:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "hook": Executed(str(tmp_path / "trace"))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointMismatch, match=r"evil\.pth holds more than tensors and plain values"):
        read_checkpoint([tmp_path / "evil.pth"])
    np.save(tmp_path / "evil.npy", np.array([Executed(str(tmp_path / "trace"))], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        read_checkpoint([tmp_path / "evil.npy"])
    assert not (tmp_path / "trace").exists()


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_printed_conversion_of_a_refused_checkpoint_makes_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = argparse.Namespace(lr=0.1)
    torch.save({"state_dict": {"weight": torch.ones(2)}, "args": arguments}, tmp_path / "args.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "four.pth", pickle_protocol=4)
    lightning = {"callbacks": {argparse.Namespace: {"score": torch.ones(1)}}, "hyper_parameters": {"a": arguments}}
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3, **lightning}, tmp_path / "last.ckpt")
    torch.save({"model": torch.nn.Linear(2, 2), "best": {"accuracy": np.float64(1)}}, tmp_path / "nested.pth")
    for name, why, keys in [
        ("last.ckpt", "holds more than tensors", {"state_dict", "callbacks", "hyper_parameters"}),
        ("nested.pth", "holds more than tensors", {"model", "best"}),
        ("args.pth", r"holds more than tensors and plain values \(argparse\.Namespace\)", {"state_dict"}),
        (
            "whole.pth",
            r"holds more than tensors and plain values \(torch\.nn\.modules\.linear\.Linear\)",
            {"weight", "bias"},
        ),
        ("script.pt", "is a TorchScript program", {"weight", "bias"}),
        ("four.pth", "was pickled with protocol 4", {"weight"}),
    ]:
        with pytest.raises(CheckpointMismatch, match=why) as refused:
            read_checkpoint([tmp_path / name])
        code = str(refused.value).split('python -c "')[1].removesuffix('"')
        exec(code, {})  # here and not by `python -c`: six programs would import torch
        assert read_checkpoint([tmp_path / "tensors.pth"]).keys() == keys, name
        (tmp_path / "tensors.pth").unlink()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert read_checkpoint([tmp_path / "tensors.pth"]).keys() == keys


def packed(kind: str) -> bytes:
    """A checkpoint as a server sends the folder that it lies in."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("folder/model.pth", b"weights")
    else:
        with tarfile.open(fileobj=file, mode=kind) as archive:
            archive.addfile(tarfile.TarInfo("folder/model.pth"))
    return file.getvalue()


def test_archive_of_arrays_is_read_by_the_names_in_it_whatever_the_file_is_called(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{"conv.weight": np.ones((2, 2), "f4"), "steps": np.int64(7)})
    (tmp_path / "a.npz").rename(tmp_path / "download")
    found = read_checkpoint([tmp_path / "download"])
    assert found["conv.weight"].tolist() == [[1, 1], [1, 1]]
    assert found["steps"] == 7


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version https://git-lfs"),
        (pickle.dumps({"weight": [1.0]}), "is a pickle: it would have to be executed"),
        (packed("w:gz"), "is an archive of files. Unpack it"),
        (packed("w:"), "is an archive of files. Unpack it"),
        (packed("zip"), "is an archive of files. Unpack it"),
        (bytes(1000), "is no checkpoint of torch, safetensors or numpy"),
    ],
    ids=["empty", "html", "git-lfs", "pickle", "gzip", "tar", "zip", "zeros"],
)
def test_what_is_no_checkpoint_is_refused_as_what_it_is(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=why):
        read_checkpoint([tmp_path / "model.pth"])


def save_everywhere(folder: Path) -> None:
    torch.save({"weight": torch.ones(200)}, folder / "a.pth")
    torch.save({"weight": torch.ones(200)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"weight": torch.ones(200)}, folder / "a.safetensors")
    np.save(folder / "a.npy", np.ones(200))
    np.savez_compressed(folder / "a.npz", weight=np.arange(200))


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors", "a.npy", "a.npz"])
@pytest.mark.parametrize("cut", [0, 40, -20])
def test_truncated_checkpoint_is_refused(tmp_path: Path, name: str, cut: int) -> None:
    save_everywhere(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
    with pytest.raises(CheckpointMismatch, match=r"Fetch it again"):
        read_checkpoint([tmp_path / name])


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors", "a.npy", "a.npz"])
@given(changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_checkpoint_is_read_or_refused_but_breaks_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save_everywhere(folder)
    content = bytearray((folder / name).read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (folder / name).write_bytes(content)
    with contextlib.suppress(CheckpointMismatch):
        read_checkpoint([folder / name])


def test_checkpoint_without_entries_or_with_one_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({0: torch.ones(2)}, tmp_path / "numbered.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointMismatch, match=r"list\.pth holds a list, not entries by name"):
        read_checkpoint([tmp_path / "list.pth"])
    with pytest.raises(CheckpointMismatch, match=r"numbered\.pth holds a dict, not entries by name"):
        read_checkpoint([tmp_path / "numbered.pth"])
    with pytest.raises(CheckpointMismatch, match=r"a\.pth: weight came from another file already"):
        read_checkpoint([tmp_path / "a.pth", tmp_path / "a.pth"])
    with pytest.raises(CheckpointMismatch, match="holds nothing that could be weights"):
        read_checkpoint([tmp_path / "empty"])
