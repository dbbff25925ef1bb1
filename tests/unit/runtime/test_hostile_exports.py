"""Exported files of strangers: refused before a runtime sees them; programs, unless they are trusted."""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from color_model import GRAPH, METADATA
from rtdetrv4.errors import ExportError, WeightsError
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.engines.onnx_structure import onnx_problem
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata
from rtdetrv4.runtime.trust import check_trust, own_folder, remember_own
from rtdetrv4.weights import read_checkpoint


@pytest.fixture
def model() -> onnx.ModelProto:
    made = onnx.parser.parse_model(GRAPH.format(batch="batch"))
    helper.set_model_props(made, {METADATA_KEY: METADATA.to_json()})
    return made


def external(location: str, **where: int) -> TensorProto:
    """A tensor of four numbers that says it is in another file."""
    tensor = TensorProto(name="box", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_box(model: onnx.ModelProto, box: TensorProto) -> bytes:
    kept = [each for each in model.graph.initializer if each.name != "box"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, box])
    return model.SerializeToString()


def refused(path: Path, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        open_engine(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "/etc/hostname",
        "../secret",
        "a/../../secret",
        "C:\\secret",
        "\\\\host\\secret",
        "..\\secret",
        "",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_data_outside_the_folder(tmp_path: Path, model: onnx.ModelProto, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    path = tmp_path / "models" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(with_box(model, external(location)))
    refused(path, r'm\.onnx was not loaded: it keeps the tensor "box" in .*(expected the name of a file|No such file)')


def test_data_behind_a_link(tmp_path: Path, model: onnx.ModelProto) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.data").symlink_to(tmp_path / "secret")
    (folder / "m.onnx").write_bytes(with_box(model, external("m.data")))
    refused(folder / "m.onnx", "a link that leads out of the folder")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_data_in_a_pipe(tmp_path: Path, model: onnx.ModelProto) -> None:
    os.mkfifo(tmp_path / "m.data")
    (tmp_path / "m.onnx").write_bytes(with_box(model, external("m.data")))
    refused(tmp_path / "m.onnx", "it is a pipe, expected a file")
    os.mkfifo(tmp_path / "p.onnx")
    refused(tmp_path / "p.onnx", "it is a pipe, expected a file")


def test_data_beside_the_file(tmp_path: Path, model: onnx.ModelProto) -> None:
    (tmp_path / "m.data").write_bytes(np.float32([0.5, 0.5, 0.5, 1]).tobytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(with_box(model, external("m.data")))
    found = open_engine(path)(np.zeros((1, 3, 32, 64), np.float32))
    np.testing.assert_array_equal(found["boxes"], [[[0.5, 0.5, 0.5, 1]]])
    path.write_bytes(with_box(model, external("m.data", offset=8, length=16)))
    refused(path, r"in bytes 8 to 24 of 'm\.data', which has 16")
    path.write_bytes(with_box(model, external("m.data", offset=8)))
    refused(path, r'has a tensor "box" that claims 4, 16 bytes, and holds 8 bytes')


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorProto(name="box", data_type=1, dims=[1 << 40], raw_data=bytes(16)), "claims 1099511627776, 4.4 TB, and"),
        (TensorProto(name="box", data_type=1, dims=[1 << 40], float_data=[0.5]), "claims 1099511627776, 1.1 TB, and"),
        (TensorProto(name="box", data_type=1, dims=[1 << 33, 1 << 33]), "claims 8589934592×8589934592"),
        (TensorProto(name="box", data_type=22, dims=[1 << 40], int32_data=[1]), "claims 1099511627776"),
        (TensorProto(name="box", data_type=8, dims=[1 << 40], string_data=[b""]), "claims 1099511627776"),
        (TensorProto(name="box", data_type=1, dims=[-1], raw_data=bytes(4)), "with a negative side"),
        (TensorProto(name="box", data_type=1, dims=[1] * 100, raw_data=bytes(4)), "more than 64 dimensions"),
    ],
)
def test_a_tensor_larger_than_its_bytes(
    tmp_path: Path, model: onnx.ModelProto, tensor: TensorProto, message: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_box(model, tensor))
    refused(path, rf"m\.onnx was not loaded: it has a tensor.* {message}")


def test_where_tensors_hide(tmp_path: Path, model: onnx.ModelProto) -> None:
    """In attributes, in graphs in them, and in functions."""
    huge = TensorProto(name="huge", data_type=1, dims=[1 << 40])
    constant = helper.make_node("Constant", [], ["x"], value=huge)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("x", 1, None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    function = helper.make_function("here", "f", [], ["x"], [constant], [helper.make_opsetid("", 18)])
    path = tmp_path / "m.onnx"
    for change in ("attribute", "graph", "function", "sparse"):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        if change == "function":
            changed.functions.append(function)
        elif change == "sparse":
            values = numpy_helper.from_array(np.float32([1]), "s")
            index = numpy_helper.from_array(np.int64([0]), "i")
            changed.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [1 << 40]))
        else:
            changed.graph.node.append(constant if change == "attribute" else node)
        path.write_bytes(changed.SerializeToString())
        refused(path, "has a sparse tensor" if change == "sparse" else 'has a tensor "huge" that claims')


def test_graphs_without_end(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):
        for field in (6 << 3, 5 << 3, 1 << 3):  # a graph that is an attribute of a node of a graph
            graph = _field(field, graph)
    (tmp_path / "m.onnx").write_bytes(_field(7 << 3, graph))
    refused(tmp_path / "m.onnx", "more than 50 messages inside each other")


def _field(key: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([key | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("content", [b"\xff" * 50, b"\x3a\xff\xff\xff\x0f", b"\x0b", b"\x3a\x05\x0a"])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", r"cannot load .*m\.onnx: it is damaged or truncated, or no ONNX file; export it again")


def test_names_that_are_no_text(tmp_path: Path, model: onnx.ModelProto) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(b'"model"', b'"m\xffdel"'))
    refused(path, r"onnxruntime cannot load .*'utf-8' codec can't decode")

    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(model.SerializeToString().replace(b"batch", b"b\xf4tch"))
    refused(path, r"onnxruntime cannot load .*'utf-8' codec can't decode")


@pytest.mark.parametrize("shape", [[1, 3, 32], [3, 32, 64, 1, 1], []])
def test_an_input_that_is_no_image(tmp_path: Path, model: onnx.ModelProto, shape: list[int]) -> None:
    path = tmp_path / "m.onnx"
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["y"])], "g", inputs, [])
    graph.output.add(name="y")
    changed = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(changed, {METADATA_KEY: METADATA.to_json()})
    path.write_bytes(changed.SerializeToString())
    refused(path, r"m\.onnx takes images tensor\(float\) \[.*\], expected images")


def test_ordinary_types_are_measured_right(tmp_path: Path, model: onnx.ModelProto) -> None:
    """Of every type that numpy has, written as bytes and one by one."""
    path = tmp_path / "m.onnx"
    for dtype in (np.float32, np.float16, np.float64, np.uint8, np.int8, np.int16, np.int32, np.int64, np.bool_):
        values = np.zeros((3, 5), dtype)
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        for tensor in (numpy_helper.from_array(values, "box"), helper.make_tensor("box", kind, (3, 5), values.ravel())):
            path.write_bytes(with_box(model, tensor))
            assert onnx_problem(path) is None, dtype
    for values in (np.zeros(0, np.float32), np.array(["", "a"], dtype=object)):
        path.write_bytes(with_box(model, numpy_helper.from_array(values, "box")))
        assert onnx_problem(path) is None


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("rtdetrv4.runtime.trust.own_folder", own_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.mark.parametrize(
    ("ending", "kind"), [(".torchscript", "TorchScript"), (".pt2", "torch.export"), (".pte", "ExecuTorch")]
)
def test_programs_are_one_s_own_or_trusted(tmp_path: Path, caches: Path, ending: str, kind: str) -> None:
    path, other = tmp_path / f"m{ending}", tmp_path / f"other{ending}"
    path.write_bytes(b"a program")
    message = rf"m\{ending} was not loaded: it is a program of {kind} that was not exported on this machine.*--trust"
    with pytest.raises(ExportError, match=message):
        check_trust(path, trust=False)
    check_trust(path, trust=True)
    assert not caches.exists()
    remember_own(path)
    check_trust(path, trust=False)
    shutil.move(path, other)  # it is known by what is in it
    check_trust(other, trust=False)
    other.write_bytes(b"a Program")
    with pytest.raises(ExportError, match="was not exported on this machine"):
        check_trust(other, trust=False)


def test_what_is_no_program_is_not_noted(tmp_path: Path, caches: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")
    remember_own(path)
    check_trust(path, trust=False)
    assert not caches.exists()


def test_a_home_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("rtdetrv4.runtime.trust.own_folder", lambda: tmp_path / "file" / "exported")
    (tmp_path / "m.pt2").write_bytes(b"x")
    remember_own(tmp_path / "m.pt2")
    with pytest.raises(ExportError, match="was not exported on this machine"):
        check_trust(tmp_path / "m.pt2", trust=False)


@pytest.mark.parametrize("name", ["m.pt2", "m.torchscript"])
def test_a_zip_bomb(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(3):
            archive.writestr(f"m/data/{number}", bytes(32 << 20))
    refused(tmp_path / name, "was not loaded: it is a zip bomb: it has .* claims to unpack to 101 MB")


@pytest.mark.parametrize("name", ["m.pt2", "m.torchscript", "m.pt"])
def test_an_archive_of_many_disks(tmp_path: Path, name: str) -> None:
    """Found by fuzzing: `zipfile.is_zipfile` has no answer, but an error."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("m/version", "3")
    end = (tmp_path / name).read_bytes()
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 7)  # of the 64-bit directory: seven disks
    (tmp_path / name).write_bytes(end[:-22] + locator + end[-22:])
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(tmp_path / name)
    with pytest.raises((ExportError, WeightsError), match=r"was not loaded: it is damaged \(zipfiles that span"):
        (read_checkpoint if name == "m.pt" else open_engine)(tmp_path / name)


def test_openvino_quotes_what_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages repeat names of the file, which its binding then cannot decode."""
    engine = pytest.importorskip("rtdetrv4.runtime.engines.openvino")
    core = engine.the_core()

    class Core:
        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def read_model(self, file: str) -> None:
            b"unknown type \xcf(".decode()

    monkeypatch.setattr(engine, "the_core", Core)
    (tmp_path / "m.xml").write_text('<net name="m" version="11"></net>')
    (tmp_path / "m.bin").touch()
    refused(tmp_path / "m.xml", r"openvino cannot load .*m\.xml: it is damaged .*'utf-8' codec can't decode byte 0xcf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_weights_of_openvino_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text('<net name="m" version="11"></net>')
    os.mkfifo(tmp_path / "m.bin")
    refused(tmp_path / "m.xml", r"cannot be used with m\.bin beside it: it is a pipe, expected a file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("[32, 64]", "[1000000000, 64]"),
            "image_size is no height and width in pixels, of up",
        ),
        (lambda text: text.replace('"test"', "5"), "model, version and precision are no texts"),
        (lambda text: text.replace("{", '{"thresholds": [1], ', 1), "thresholds is no number for each class"),
        (lambda text: text.replace("{", '{"training_hw": [0, NaN], ', 1), "training_hw is no height and width"),
        (lambda text: text.replace('"batch": null', '"batch": -1'), "batch is no number of images"),
        (lambda text: text.replace('"stretch"', "[]"), r'has resize "\[\]", expected letterbox or stretch'),
        (lambda text: "[" * 100_000, "too many lists and objects inside each other"),
        (lambda text: text.replace('"model"', '"names": ["x"], "model"'), 'the key "names" twice'),
    ],
)
def test_metadata_that_claims_nonsense(change: Callable[[str], str], message: str) -> None:
    changed = change(METADATA.to_json())
    assert changed != METADATA.to_json()
    with pytest.raises(ExportError, match=message):
        ExportMetadata.from_json(changed)
