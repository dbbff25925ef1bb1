"""The Triton example asks for what an exported file has; a stand-in takes the place of the server."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import golden
from rtdetrv4 import ExportedDetector

from .conftest import Exported

EXAMPLE = Path(__file__).parents[2] / "examples/triton"
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
SIZE = (640, 640)


def tensors(config: str, kind: str) -> dict[str, tuple[str, list[int]]]:
    """Type and dimensions by name of each "input" or "output" in a config.pbtxt."""
    inputs, _, outputs = config.partition("\noutput [")
    block = inputs if kind == "input" else outputs
    entries = re.findall(r'name: "(\w+)", data_type: (\w+), dims: \[ ([-\d, ]+) \]', block)
    return {name: (data_type, [int(dim) for dim in dims.split(",")]) for name, data_type, dims in entries}


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_fixed", "openvino"])
def test_configs_describe_an_exported_file(square: Exported, name: str) -> None:
    config = (EXAMPLE / name / "config.pbtxt").read_text(encoding="utf-8")
    batches = "max_batch_size: 0" not in config
    session = onnxruntime.InferenceSession(str(square.path), providers=["CPUExecutionProvider"])
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        described = tensors(config, kind)
        assert {value.name: TYPES[value.type] for value in values} == {key: each[0] for key, each in described.items()}
        for value in values:
            dims = described[value.name][1]
            assert len(dims) == len(value.shape) - batches  # the server adds the dimension of the batch itself
            if kind == "input":
                assert tuple(dims[-3:]) == (3, *SIZE)
            elif value.name == "boxes":
                assert dims[-1] == 4


def test_the_client_finds_what_the_package_finds(
    square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = ExportedDetector(square.path, device="cpu")
    picture = tmp_path / "picture.png"
    Image.fromarray((255 * golden.image(3, 90, 150)).astype(np.uint8).transpose(1, 2, 0)).save(picture)
    (tmp_path / "metadata.json").write_text(detector.metadata.to_json(), encoding="utf-8")

    class InferInput:
        def __init__(self, name: str, shape: list[int], datatype: str) -> None:
            self.name, self.shape, self.datatype = name, shape, datatype

        def set_data_from_numpy(self, data: np.ndarray) -> None:
            assert (list(data.shape), self.datatype, data.dtype) == (self.shape, "FP32", np.float32)
            self.data = data

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8001"

        def infer(self, model_name: str, inputs: list[InferInput]) -> SimpleNamespace:
            assert (model_name, [given.name for given in inputs]) == ("onnxruntime", ["images"])
            return SimpleNamespace(as_numpy=detector.engine(inputs[0].data).get)

    grpc = ModuleType("tritonclient.grpc")
    vars(grpc).update(InferInput=InferInput, InferenceServerClient=Client)
    tritonclient = ModuleType("tritonclient")
    vars(tritonclient).update(grpc=grpc)
    monkeypatch.setitem(sys.modules, "tritonclient", tritonclient)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", grpc)
    arguments = ["client.py", "localhost:8001", "onnxruntime", str(tmp_path / "metadata.json"), str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLE / "client.py"), run_name="__main__")

    (expected,) = detector.predict(picture, conf=0.4)
    lines = [f"{picture} {one.name} {one.confidence:.2f} {one.xyxy.round().tolist()}" for one in expected]
    assert capsys.readouterr().out.splitlines() == lines
    assert lines
