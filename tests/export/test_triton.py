"""Triton's model repositories say what their graph has, and the client finds what the package finds.

A server is not needed: its schema, where tritonclient is installed, reads the configuration, and a stand-in answers the
client.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import golden
from rtdetrv4 import ExportedDetector
from rtdetrv4.errors import ExportError
from rtdetrv4.export.triton import configuration
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata
from rtdetrv4.runtime.export_report import ExportReport, report_path
from rtdetrv4.runtime.proof import verify_file

from .conftest import ANIMALS, Exported, export

EXAMPLE = Path(__file__).parents[2] / "examples/triton"
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*("(?:[^"\\\n]|\\["\\])*"|[A-Za-z_]\w*|-?\d+|[\[\]{}:,]|$)')


def read_config(text: str) -> dict[str, Any]:
    """Protobuf's text format, as far as a config.pbtxt needs it; a field that comes twice is refused."""
    tokens: list[str] = []
    end = 0
    while not tokens or tokens[-1]:
        found = TOKEN.match(text, end)
        assert found, f"unreadable: {text[end : end + 40]!r}"
        tokens.append(found[1])
        end = found.end()
    tokens.reverse()

    def message(last: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while (name := tokens.pop()) != last:
            assert re.fullmatch(r"[a-z]\w*", name), f"no field: {name}"
            assert name not in fields
            if tokens[-1] == ":":
                tokens.pop()
            fields[name] = value()
            if tokens[-1] == ",":
                tokens.pop()
        return fields

    def value() -> Any:
        token = tokens.pop()
        if token == "{":
            return message("}")
        if token == "[":
            items = [value()]
            while (token := tokens.pop()) == ",":
                items.append(value())
            assert token == "]"
            return items
        if token.startswith('"'):
            return re.sub(r"\\(.)", r"\1", token[1:-1])
        return int(token) if token.lstrip("-").isdecimal() else token

    return message("")


def check_config(config: dict[str, Any], session: onnxruntime.InferenceSession) -> None:
    """Compare every input and output with those of a file."""
    batches = config["max_batch_size"] > 0
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert config[kind] == [
            {
                "name": value.name,
                "data_type": TYPES[value.type],
                # The server adds the dimension of the batch itself.
                "dims": [size if isinstance(size, int) else -1 for size in value.shape[batches:]],
            }
            for value in values
        ]


@pytest.fixture(scope="module")
def repository(square: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "animals-1_triton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
        export(square.model, path)
    return path


def test_the_folder(repository: Path) -> None:
    files = sorted(file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file())
    assert files == ["animals-1/1/model.onnx", "animals-1/config.pbtxt", "animals-1/labels.txt"]
    labels = (repository / "animals-1/labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == list(ANIMALS.names)


def test_the_file_in_it_was_proven(repository: Path) -> None:
    report = ExportReport.read(report_path(repository))
    assert report.runtime.startswith("ONNX Runtime")
    assert (report.format, report.batches, report.matched) == ("triton", (1, 2, 7), 1)
    assert report.notes == ("run in ONNX Runtime, not in Triton",)
    assert verify_file(repository, device="cpu").matched.share == 1


def test_it_says_what_the_graph_has(repository: Path) -> None:
    config = read_config((repository / "animals-1/config.pbtxt").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(
        str(repository / "animals-1/1/model.onnx"), providers=["CPUExecutionProvider"]
    )
    check_config(config, session)
    (images,) = config["input"]
    assert images == {"name": "images", "data_type": "TYPE_FP32", "dims": [3, 64, 64]}
    assert {output["name"] for output in config["output"]} == {"labels", "boxes", "scores"}
    assert (config["backend"], config["max_batch_size"]) == ("onnxruntime", 8)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert config["instance_group"] == [{"kind": "KIND_AUTO", "count": 1}]
    assert config["parameters"]["key"] == METADATA_KEY
    metadata = ExportMetadata.from_json(config["parameters"]["value"]["string_value"])
    assert metadata == open_engine(repository).metadata


def test_one_batch_size_of_frames() -> None:
    types, make = onnx.TensorProto, onnx.helper.make_tensor_value_info
    frames = make("frames", types.UINT8, [2, 64, 96, 3])
    scores = make("scores", types.FLOAT16, [2, "anchors"])
    config = read_config(configuration(onnx.helper.make_graph([], "graph", [frames], [scores]), 2, "{}"))
    assert config["input"] == [{"name": "frames", "data_type": "TYPE_UINT8", "dims": [2, 64, 96, 3]}]
    assert config["output"] == [{"name": "scores", "data_type": "TYPE_FP16", "dims": [2, -1]}]
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config


def test_names_of_classes_may_be_anything(square: Exported) -> None:
    graph = onnx.load(square.path).graph
    metadata = open_engine(square.path).metadata._replace(names=('a "cat"', "back\\slash\n", "犬"))
    config = read_config(configuration(graph, None, metadata.to_json()))
    assert ExportMetadata.from_json(config["parameters"]["value"]["string_value"]) == metadata


def test_the_schema_of_triton_reads_it(repository: Path) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    text_format = pytest.importorskip("google.protobuf.text_format")
    for file in (repository / "animals-1/config.pbtxt", EXAMPLE / "openvino/config.pbtxt"):
        text = file.read_text(encoding="utf-8")
        config, ours = text_format.Parse(text, schema.ModelConfig()), read_config(text)
        assert [list(value.dims) for value in config.output] == [value["dims"] for value in ours["output"]]
        assert config.max_batch_size == ours["max_batch_size"]
        key = ours["parameters"]["key"]
        assert config.parameters[key].string_value == ours["parameters"]["value"]["string_value"]


def test_the_config_for_openvino(square: Exported) -> None:
    config = read_config((EXAMPLE / "openvino/config.pbtxt").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(square.path), providers=["CPUExecutionProvider"])
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert [(each["name"], each["data_type"]) for each in config[kind]] == [
            (value.name, TYPES[value.type]) for value in values
        ]
        assert [len(each["dims"]) for each in config[kind]] == [len(value.shape) for value in values]


def test_a_repository_of_several_models_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m_triton"
    path.mkdir()
    with pytest.raises(ExportError, match=r"should hold one .*, and holds none: export it again"):
        open_engine(path)
    for name in ("a", "b"):
        (path / name / "1").mkdir(parents=True)
        (path / name / "1/model.onnx").touch()
    with pytest.raises(ExportError, match="holds 2 of them: give the path of the one that is meant"):
        open_engine(path)


def test_the_client_finds_what_the_package_finds(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = ExportedDetector(repository, device="cpu")
    parameters = read_config((repository / "animals-1/config.pbtxt").read_text(encoding="utf-8"))["parameters"]
    picture = tmp_path / "picture.png"
    Image.fromarray((255 * golden.image(3, 90, 150)).astype(np.uint8).transpose(1, 2, 0)).save(picture)

    class InferInput:
        def __init__(self, name: str, shape: list[int], datatype: str) -> None:
            self.name, self.shape, self.datatype = name, shape, datatype

        def set_data_from_numpy(self, data: np.ndarray) -> None:
            assert (list(data.shape), self.datatype, data.dtype) == (self.shape, "FP32", np.float32)
            self.data = data

    class Client:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8001"

        def get_model_config(self, model_name: str) -> SimpleNamespace:
            assert model_name == "animals-1"
            given = {parameters["key"]: SimpleNamespace(**parameters["value"])}
            return SimpleNamespace(config=SimpleNamespace(parameters=given))

        def infer(self, model_name: str, inputs: list[InferInput]) -> SimpleNamespace:
            assert (model_name, [given.name for given in inputs]) == ("animals-1", ["images"])
            return SimpleNamespace(as_numpy=detector.engine(inputs[0].data).get)

    grpc = ModuleType("tritonclient.grpc")
    vars(grpc).update(InferInput=InferInput, InferenceServerClient=Client)
    tritonclient = ModuleType("tritonclient")
    vars(tritonclient).update(grpc=grpc)
    monkeypatch.setitem(sys.modules, "tritonclient", tritonclient)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", grpc)
    monkeypatch.setattr(sys, "argv", ["client.py", "localhost:8001", "animals-1", str(picture)])
    runpy.run_path(str(EXAMPLE / "client.py"), run_name="__main__")

    (expected,) = detector.predict(picture, conf=0.4)
    lines = [f"{picture} {one.name} {one.confidence:.2f} {one.xyxy.round().tolist()}" for one in expected]
    assert capsys.readouterr().out.splitlines() == lines
    assert lines
