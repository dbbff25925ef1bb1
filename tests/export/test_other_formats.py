"""Files for OpenVINO and PyTorch compute what PyTorch computes, and the options of a graph reach them."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.export.passes import move_to_device_pass

from rtdetrv4.errors import ExportError
from rtdetrv4.export import GraphOptions
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.export_report import ExportReport, report_path

from .conftest import ANIMALS, Exported, export

ALL_OPTIONS = GraphOptions(num_top=20, frames=True, grid_sample=False, classes=(2, 0), duplicates="drop")


@pytest.fixture(scope="module")
def folder(square: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in every other format but torch.export's; the ONNX graph is not traced again."""
    path = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
        export(square.model, path / "m_openvino")
        export(square.model, path / "m-fp16_openvino", precision="fp16")
        export(square.model, path / "m-tensorrt.onnx")
    export(square.model, path / "m.torchscript")
    return path


@pytest.mark.parametrize(
    ("name", "runtime"),
    [("m_openvino", "OpenVINO"), ("m.torchscript", "PyTorch"), ("m-tensorrt.onnx", "ONNX Runtime")],
)
def test_any_batch_size(folder: Path, name: str, runtime: str) -> None:
    report = ExportReport.read(report_path(folder / name))
    assert report.runtime.startswith(runtime)
    assert (report.batches, report.num_images, report.matched) == ((1, 2, 7), 10, 1)
    assert report.max_box_px < 0.05
    assert report.max_score < 1e-4
    engine = open_engine(folder / name)
    assert engine.metadata.names == ANIMALS.names
    assert engine.metadata.batch is None
    assert engine(np.zeros((3, 3, 64, 64), np.float32))["boxes"].shape == (3, 252, 4)


def test_the_folder_of_openvino(folder: Path) -> None:
    path = folder / "m_openvino"
    assert sorted(file.name for file in path.iterdir()) == ["m.bin", "m.xml", "metadata.json"]
    assert json.loads((path / "metadata.json").read_text(encoding="utf-8"))["names"] == list(ANIMALS.names)
    report = ExportReport.read(report_path(path))
    assert report.size_bytes == sum(file.stat().st_size for file in path.iterdir())


def test_half_the_weights(folder: Path) -> None:
    whole, half = ((folder / name / f"{name.removesuffix('_openvino')}.bin").stat().st_size for name in (
        "m_openvino", "m-fp16_openvino"
    ))  # fmt: skip
    assert half < 0.55 * whole
    report = ExportReport.read(report_path(folder / "m-fp16_openvino"))
    assert report.precision == open_engine(folder / "m-fp16_openvino").metadata.precision == "fp16"
    assert report.matched is not None
    assert report.matched > 0.95
    assert report.max_score > 1e-6


def test_lines_for_trtexec_are_in_the_report(folder: Path) -> None:
    notes = ExportReport.read(report_path(folder / "m-tensorrt.onnx")).notes
    assert notes[0] == "run in ONNX Runtime, not in TensorRT"
    assert any(
        "trtexec --onnx=m-tensorrt.onnx --saveEngine=m.engine --minShapes=images:1x3x64x64" in each for each in notes
    )


def test_nothing_else_is_left(folder: Path) -> None:
    names = {"m_openvino", "m-fp16_openvino", "m.torchscript", "m-tensorrt.onnx"}
    assert {file.name for file in folder.iterdir()} == names | {f"{name}.report.json" for name in names}


def devices_in(path: Path) -> list[str]:
    """What names a device in a TorchScript program, which would fail on another one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        program: Any = torch.jit.load(path)
    return re.findall(r'Device = prim::Constant\[value="(.+?)"\]', str(program.inlined_graph))


def test_torchscript_runs_on_any_device(folder: Path) -> None:
    assert devices_in(folder / "m.torchscript") == []


def test_a_rectangle_with_every_option_in_torchscript(square: Exported, tmp_path: Path) -> None:
    path = tmp_path / "m.torchscript"
    report = export(square.model, path, image_size=(64, 96), options=ALL_OPTIONS, batch=2)
    assert (report.batches, report.image_size, report.matched) == ((2,), (64, 96), 1)
    metadata = open_engine(path).metadata
    assert (metadata.names, metadata.category_ids) == (("éléphant", "cat"), (30, 3))
    assert (metadata.input, metadata.duplicates, metadata.batch) == ("frames", "drop", 2)
    assert devices_in(path) == []


def test_a_rectangle_with_every_option_in_onnx_and_openvino(
    square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(square.model, tmp_path / "m.onnx", image_size=(64, 96), options=ALL_OPTIONS)
    graph = onnx.load(tmp_path / "m.onnx")
    (frames,) = graph.graph.input
    assert frames.name == "frames"
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_value for size in frames.type.tensor_type.shape.dim][1:] == [64, 96, 3]
    assert "GridSample" not in Counter(node.op_type for node in graph.graph.node)
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: graph)
    report = export(square.model, tmp_path / "m_openvino", image_size=(64, 96), options=ALL_OPTIONS, simplify=False)
    assert (report.batches, report.matched) == ((1, 2, 7), 1)
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96)).astype(np.float32) / 255
    # On some processors, OpenVINO would compute in bfloat16.
    ours, theirs = (open_engine(tmp_path / name, precision="fp32")(images) for name in ("m.onnx", "m_openvino"))
    assert ours["scores"].shape == (1, 20)
    np.testing.assert_allclose(theirs["scores"], ours["scores"], atol=1e-4)


@pytest.mark.slow
def test_torch_export(square: Exported, tmp_path: Path) -> None:
    report = export(square.model, tmp_path / "m.pt2")
    assert (report.batches, report.matched) == ((1, 2, 7), 1)
    assert report.max_box_px < 0.05
    assert open_engine(tmp_path / "m.pt2").metadata.names == ANIMALS.names
    # On another device all tensors must be there; the device "meta" has them without their values.
    program = move_to_device_pass(torch.export.load(tmp_path / "m.pt2"), torch.device("meta")).module()
    scores, *_ = program(torch.rand(2, 3, 64, 64, device="meta"))
    assert (scores.device.type, len(scores)) == ("meta", 2)


@pytest.mark.parametrize("name", ["m.onnx", "m.torchscript", "m.pt2", "m_openvino/m.xml"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"cannot load .*m\.|has no metadata") as caught:
        open_engine(path)
    assert "\n" not in str(caught.value)


def test_an_earlier_folder_is_replaced_whole(
    square: Exported, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
    (tmp_path / "m_openvino").mkdir()
    (tmp_path / "m_openvino/old.xml").write_text("of an earlier version")
    export(square.model, tmp_path / "m_openvino")
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {
        "m.bin", "m.xml", "metadata.json", "m_openvino.report.json"
    }  # fmt: skip


@pytest.mark.slow
def test_executorch(square: Exported, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    report = export(square.model, tmp_path / "m.pte", batch=1)
    assert (report.batches, report.matched) == ((1,), 1)
    assert report.max_box_px < 0.05
    (tmp_path / "m.pte").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"executorch cannot load .*m\.pte"):
        open_engine(tmp_path / "m.pte")
