"""Names of formats and of files, and what is refused before any work."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from rtdetrv4.errors import ConfigError, ExportError, MissingDependencyError
from rtdetrv4.export import FORMATS, find_formats
from rtdetrv4.export.formats import check_format, find_targets, target
from rtdetrv4.export.tensorrt import build_lines
from rtdetrv4.runtime.export_metadata import ExportMetadata


def test_one_or_several_names() -> None:
    assert [each.name for each in find_formats("onnx")] == ["onnx"]
    assert [each.name for each in find_formats("openvino, onnx,openvino")] == ["openvino", "onnx"]
    assert [each.name for each in find_formats(["pt2"])] == ["pt2"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("onx", r'format: got "onx", expected onnx, openvino, .*Did you mean "onnx"\?'),
        ("onnx,", 'got ""'),
        ([], "got none"),
    ],
)
def test_others_are_named(names: str | list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_formats(names)


def test_file_names() -> None:
    assert target(Path("runs/w"), FORMATS["onnx"], "fp32") == Path("runs/w.onnx")
    assert target(Path("runs/w.1"), FORMATS["openvino"], "int8") == Path("runs/w.1-int8_openvino")
    assert target(Path("w"), FORMATS["tensorrt"], "fp16") == Path("w-fp16-tensorrt.onnx")


def test_where_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, several = Path("runs/mine/weights"), find_formats("onnx,openvino")
    onnx = several[:1]
    assert find_targets(None, usual, several, "fp16") == {
        "onnx": Path("runs/mine/weights-fp16.onnx"),
        "openvino": Path("runs/mine/weights-fp16_openvino"),
    }
    assert find_targets("a/b", usual, onnx, "fp32") == {"onnx": Path("a/b.onnx")}
    assert find_targets("a/b.onnx", usual, onnx, "fp16") == {"onnx": Path("a/b.onnx")}
    assert find_targets("new/", usual, onnx, "fp32") == {"onnx": Path("new/weights.onnx")}
    assert find_targets(tmp_path, usual, onnx, "fp32") == {"onnx": tmp_path / "weights.onnx"}
    for folder in (".", "..", "/"):
        assert find_targets(folder, usual, onnx, "fp32") == {"onnx": Path(folder) / "weights.onnx"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m_openvino").mkdir()  # an earlier export, which is replaced
    assert find_targets("m_openvino", usual, several[1:], "fp32") == {"openvino": Path("m_openvino")}
    with pytest.raises(ConfigError, match=r'out: got "m\.xml", expected a file name that ends in \.onnx'):
        find_targets("m.xml", usual, onnx, "fp32")
    with pytest.raises(ConfigError, match=r'out: got "m\.onnx", expected a name without an ending'):
        find_targets("m.onnx", usual, several, "fp32")
    assert find_targets("runs/v1.2", usual, onnx, "fp32") == {"onnx": Path("runs/v1.2.onnx")}


def test_precisions() -> None:
    with pytest.raises(ConfigError, match=r'precision: got "fp16", but pt2 comes in fp32\.'):
        check_format(FORMATS["pt2"], "fp16", None)
    with pytest.raises(ConfigError, match=r'"bf16", but onnx comes in fp32, fp16 or int8\.'):
        check_format(FORMATS["onnx"], "bf16", None)


def test_only_onnx_operators_have_an_opset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for name in ("torchscript", "pt2", "executorch"):
        with pytest.raises(
            ConfigError, match=rf"opset: got 18, but {name} has none; .*one: onnx, openvino, tensorrt, triton\."
        ):
            check_format(FORMATS[name], "fp32", 1, opset=18)
    for name in ("onnx", "openvino", "tensorrt", "triton"):
        check_format(FORMATS[name], "fp32", 1, opset=20)


def test_a_format_that_needs_a_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="executorch takes one batch size only; give it, such as batch=1"):
        check_format(FORMATS["executorch"], "fp32", None)
    check_format(FORMATS["executorch"], "fp32", 1)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: set[str] = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2026.1.0")
    for module, name, precision, extra in (
        ("onnxslim", "onnx", "fp32", "export"),
        ("openvino", "openvino", "fp16", "openvino"),
        ("onnxruntime", "openvino", "int8", "export"),
        ("executorch", "executorch", "fp32", "executorch"),
    ):
        check_format(FORMATS[name], precision, 1)
        missing.add(module)
        with pytest.raises(MissingDependencyError, match=rf'{module} is not .*pip install "rtdetrv4\[{extra}\]"'):
            check_format(FORMATS[name], precision, 1)
        missing.clear()


def test_a_wrong_runtime_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2025.4.0" if name == "openvino" else version(name))
    with pytest.raises(ExportError, match=r"openvino 2025\.4\.0 on CPUs finds less"):
        check_format(FORMATS["openvino"], "fp32", None)


def test_lines_for_tensorrt() -> None:
    metadata = ExportMetadata("m", ("a",), (1,), (384, 640), "postprocessed", "0", precision="fp16")
    lines = build_lines("w-fp16-tensorrt.onnx", metadata, "images")
    shapes = " ".join(
        f"--{kind}Shapes=images:{batch}x3x384x640" for kind, batch in (("min", 1), ("opt", 4), ("max", 16))
    )
    line = f"trtexec --onnx=w-fp16-tensorrt.onnx --saveEngine=w-fp16.engine {shapes}"
    assert lines[:2] == (f"TensorRT 10.6 and newer: {line} --stronglyTyped", f"TensorRT 11: {line}")
    fixed = build_lines("w-tensorrt.onnx", metadata._replace(precision="fp32", batch=1, input="frames"), "frames")
    assert "--minShapes" not in fixed[0]
    assert "--noTF32" in fixed[0]
    frames = build_lines("w-tensorrt.onnx", metadata._replace(input="frames"), "frames")
    assert "--maxShapes=frames:16x384x640x3" in frames[0]
