"""Every runtime on a small model whose answer is known: the scores are the mean red, green and blue of the image."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import openvino
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from color_model import GRAPH, METADATA
from rtdetrv4 import Detector
from rtdetrv4.cli import main
from rtdetrv4.errors import ConfigError, ExportError, MissingDependencyError
from rtdetrv4.runtime import ExportedDetector
from rtdetrv4.runtime.engines import check_name, is_exported, open_engine
from rtdetrv4.runtime.engines.damage import cannot_load
from rtdetrv4.runtime.engines.openvino import the_core
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ForeignFileError
from rtdetrv4.runtime.trust import remember_own


class Colors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("box", torch.tensor([0.5, 0.5, 0.5, 1.0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = images.mean(dim=(2, 3))[:, None]
        return logits, logits[..., :1] * 0 + self.box


Write = Callable[[Path, str | None, str], Path]


def write_onnx(folder: Path, metadata: str | None, batch: str = "batch") -> Path:
    model = onnx.parser.parse_model(GRAPH.format(batch=batch))
    if metadata is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def write_openvino(folder: Path, metadata: str | None, batch: str = "batch") -> Path:
    model = the_core().read_model(str(write_onnx(folder, None, batch)))
    target = folder / "model_openvino"
    target.mkdir()
    openvino.save_model(model, str(target / "model.xml"), compress_to_fp16=False)
    if metadata is not None:
        (target / "metadata.json").write_text(metadata, encoding="utf-8")
    return target


def write_torchscript(folder: Path, metadata: str | None, batch: str = "batch") -> Path:
    program = torch.jit.trace(Colors(), (torch.rand(2, 3, 32, 64),))
    extra = {} if metadata is None else {METADATA_KEY: metadata}
    torch.jit.save(program, folder / "model.torchscript", _extra_files=extra)
    remember_own(folder / "model.torchscript")
    return folder / "model.torchscript"


def write_pt2(folder: Path, metadata: str | None, batch: str = "batch") -> Path:
    shapes = {"images": {0: torch.export.Dim("batch") if batch == "batch" else None}}
    images = torch.rand(2 if batch == "batch" else int(batch), 3, 32, 64)
    program = torch.export.export(Colors(), (images,), dynamic_shapes=shapes)
    extra = {} if metadata is None else {METADATA_KEY: metadata}
    torch.export.save(program, folder / "model.pt2", extra_files=extra)
    remember_own(folder / "model.pt2")
    return folder / "model.pt2"


WRITERS: dict[str, Write] = {
    "onnxruntime": write_onnx,
    "openvino": write_openvino,
    "torchscript": write_torchscript,
    "pt2": write_pt2,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec:FutureWarning"),
]
every_runtime = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_runtime
def test_any_batch_is_run(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, METADATA.to_json(), "batch")
    assert is_exported(path)
    engine = open_engine(path, device="cpu", threads=1, precision="fp32")
    assert engine.metadata == METADATA
    images = np.random.default_rng(0).random((7, 3, 32, 64), dtype=np.float32)
    for batch in (1, 2, 7):
        found = engine(images[:batch])
        assert set(found) == {"logits", "boxes"}
        assert found["logits"].dtype == np.float32
        np.testing.assert_allclose(found["logits"][:, 0], images[:batch].mean(axis=(2, 3)), atol=1e-5)
        np.testing.assert_allclose(found["boxes"], np.tile([0.5, 0.5, 0.5, 1], (batch, 1, 1)))
    (detections,) = ExportedDetector(path).predict(np.full((50, 200, 3), (255, 0, 0), np.uint8), conf=0.6)
    assert detections.class_name == ["red"]
    np.testing.assert_allclose(detections.xyxy, [[50, 0, 150, 50]], atol=1e-3)


@pytest.mark.parametrize("write", [write_torchscript, write_pt2], ids=["torchscript", "pt2"])
def test_programs_of_somebody_else(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, METADATA.to_json(), "batch")
    monkeypatch.setattr("rtdetrv4.runtime.trust.own_folder", lambda: tmp_path / "nothing is noted here")
    for load in (open_engine, ExportedDetector, Detector):
        with pytest.raises(ExportError, match=r"model\.\w+ was not loaded: it is a program of .* not exported on this"):
            load(path)
        load(path, trust=True)
    Image.new("RGB", (64, 32), (255, 0, 0)).save(tmp_path / "red.png")
    command = ["predict", str(tmp_path / "red.png"), "--model", str(path), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "--trust" in capsys.readouterr().err
    assert main([*command, "--trust"]) == 0


@every_runtime
def test_another_size_or_batch_is_one_line(write: Write, tmp_path: Path) -> None:
    engine = open_engine(write(tmp_path, METADATA._replace(batch=2).to_json(), "2"))
    if engine.metadata.batch is None:  # TorchScript's own shapes are not fixed
        return
    with pytest.raises(ExportError, match=r"takes images 2×3×32×64, got 3×3×32×64. Export without a fixed batch size"):
        engine(np.zeros((3, 3, 32, 64), np.float32))
    with pytest.raises(ExportError, match="takes images 2×3×32×64, got 2×3×64×64"):
        engine(np.zeros((2, 3, 64, 64), np.float32))


@every_runtime
def test_foreign_and_damaged_files_are_one_line(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, None, "batch")
    with pytest.raises(ForeignFileError, match=r"has no metadata of rtdetrv4; write it with Detector.export"):
        open_engine(path)
    file = path / "model.xml" if path.is_dir() else path
    for content in (file.read_bytes()[: file.stat().st_size // 2], b"no model", b""):
        file.write_bytes(content)
        with pytest.raises(ExportError, match=r"cannot load .*model") as caught:
            open_engine(path)
        assert len(str(caught.value).splitlines()) == 1


@every_runtime
def test_files_of_other_kinds_are_named(
    write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, METADATA.to_json(), "batch")
    file = path / "model.xml" if path.is_dir() else path
    capfd.readouterr()
    caplog.clear()
    weights = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for content, what in (
        (b"", "it is empty; export it again"),
        (len(weights).to_bytes(8, "little") + weights + bytes(4), "it is a file of weights under another name"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is a PNG image"),
        (b"<!DOCTYPE html><p>404", "it is a web page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS; fetch the file itself"),
        (bytes(range(256)), "it is damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(ExportError, match=rf"cannot load .*model.*: {what}"):
            open_engine(path)
    file.unlink()
    file.mkdir()
    with pytest.raises(ExportError, match=r"cannot load .*model.*: it is a folder, expected a file"):
        open_engine(path)
    assert capfd.readouterr().err == ""
    assert caplog.text == ""


@every_runtime
def test_an_archive_of_something_else_is_one_line(
    write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, METADATA.to_json(), "batch")
    file = path / "model.xml" if path.is_dir() else path
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b", "c")
    capfd.readouterr()
    caplog.clear()
    with pytest.raises(
        ExportError, match=r"cannot load .*model.*: it is (a zip archive|damaged or truncated)"
    ) as caught:
        open_engine(path, trust=True)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("words", "short"),
    [
        (
            "[ONNXRuntimeError] : 7 : X : Load model from d/a.onnx failed:Protobuf parsing failed.",
            "Protobuf parsing failed",
        ),
        ("Axes {1, 2} of d/a.onnx are not valid. Check 'x' failed at y.cpp:3", "Axes {1, 2} of a.onnx are not valid"),
        ("w" * 1000, "w" * 160 + "…"),
    ],
)
def test_the_words_of_a_runtime_are_shortened(words: str, short: str) -> None:
    assert str(cannot_load(Path("d/a.onnx"), "abc", words)) == (
        "abc cannot load d/a.onnx: it is damaged or truncated, or needs another version of abc; export it again "
        f"({short})."
    )


def test_parts_of_an_openvino_folder_that_are_not_there(tmp_path: Path) -> None:
    path = write_openvino(tmp_path, METADATA.to_json())
    (path / "metadata.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ExportError, match=r"model_openvino: the metadata of the exported model cannot be read"):
        open_engine(path)
    (path / "model.bin").unlink()
    with pytest.raises(ExportError, match=r"cannot load .*model\.xml: model\.bin, its weights, is not beside it"):
        open_engine(path)
    (tmp_path / "file_openvino").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"file_openvino is a file, expected the folder that the export wrote"):
        open_engine(tmp_path / "file_openvino")


def test_without_torch_a_file_under_another_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_openvino(tmp_path, METADATA.to_json()).rename(tmp_path / "renamed")
    report, weights = tmp_path / "w.onnx.report.json", tmp_path / "w.safetensors"
    report.write_text("{}")
    weights.write_bytes(b"w")
    check_name(folder)  # a detector of PyTorch has words of its own
    monkeypatch.setitem(sys.modules, "torch", None)
    for path in (folder, report):
        with pytest.raises(
            MissingDependencyError, match=r"has no name of an exported .* end in \.onnx, _openvino, .*torch"
        ):
            Detector(path)
    for model in (weights, str(tmp_path / "missing"), "rtdetrv4-s", None):
        with pytest.raises(MissingDependencyError, match=r"^torch is not installed; install it with"):
            Detector(model)


@every_runtime
def test_a_runtime_that_is_missing_names_its_extra(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, METADATA.to_json(), "batch")
    for module in ("onnxruntime", "openvino", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match="is not installed; install it with: pip install"):
        open_engine(path)


@every_runtime
def test_devices_and_precisions_that_there_are_not(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, METADATA.to_json(), "batch")
    with pytest.raises(ConfigError, match=r'device: got "xpu:3", but .* has .*cpu here'):
        open_engine(path, device="xpu:3")
    with pytest.raises(ConfigError, match="threads: got 0, expected a number of threads"):
        open_engine(path, threads=0)
    with pytest.raises(ConfigError, match='precision: got "int4", expected fp32 or bf16'):
        open_engine(path, precision="int4")  # pyright: ignore[reportArgumentType]
    if not path.is_dir():
        with pytest.raises(ConfigError, match="computes in the precision of the file; bf16 is for OpenVINO"):
            open_engine(path, precision="bf16")


def test_openvino_says_what_it_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_openvino(tmp_path, METADATA.to_json())
    version = openvino.__version__.partition("-")[0]
    assert open_engine(path, precision="fp32").name == f"OpenVINO {version} on CPU, f32"
    core = the_core()
    preferred = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    assert open_engine(path / "model.xml").name == f"OpenVINO {version} on CPU, {preferred}"
    (tmp_path / "int8").mkdir()
    quantized = write_openvino(tmp_path / "int8", METADATA._replace(precision="int8").to_json())
    assert open_engine(quantized).name.endswith("f32")
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert open_engine(quantized, precision="bf16").name.endswith("bf16")
        assert open_engine(path, precision="bf16").name.endswith("bf16")
    else:
        with pytest.raises(ConfigError, match="no instructions for bf16"):
            open_engine(path, precision="bf16")
    monkeypatch.setattr(openvino, "__version__", "2026.0.0-1-x")
    with pytest.raises(ExportError, match=r"openvino 2026.0.0 on CPUs finds nothing.*install another one"):
        open_engine(path)


def test_openvino_runs_as_many_calls_at_once_as_it_suggests(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine = open_engine(write_openvino(tmp_path, METADATA.to_json()), hint="throughput", precision="fp32")
    assert engine.num_parallel >= 1
    images = np.random.default_rng(0).random((12, 1, 3, 32, 64), dtype=np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine, images))
    logits = np.concatenate([each["logits"] for each in found])[:, 0]
    np.testing.assert_allclose(logits, images[:, 0].mean(axis=(2, 3)), atol=1e-5)


def test_openvino_reads_the_metadata_of_onnx_files(tmp_path: Path) -> None:
    from rtdetrv4.runtime.engines.engine import EngineOptions
    from rtdetrv4.runtime.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(write_onnx(tmp_path, METADATA.to_json()), EngineOptions(precision="fp32"))
    assert engine.metadata == METADATA
    assert engine(np.ones((2, 3, 32, 64), np.float32))["logits"].tolist() == [[[1, 1, 1]]] * 2


def test_openvino_keeps_few_shapes_compiled(tmp_path: Path) -> None:
    engine = open_engine(write_openvino(tmp_path, METADATA.to_json()), precision="fp32")
    model: Any = engine._run  # pyright: ignore[reportAttributeAccessIssue]
    compiled = list[int]()
    compile_model = model._compile
    model._compile = lambda clone: compiled.append(clone.input(0).shape[0]) or compile_model(clone)
    for batch in (
        *range(1, 9),
        1,
        9,
        1,
        3,
        2,
    ):  # 9 takes the place of 2, which was not used for longest, and 2 that of 4
        assert len(engine(np.ones((batch, 3, 32, 64), np.float32))["logits"]) == batch
    assert compiled == [*range(1, 10), 2]
    assert len(model._compiled) == len(model._requests.by_model) == 8, "requests keep no other model alive"


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "empty_openvino"
    folder.mkdir()
    with pytest.raises(ExportError, match=r"holds 0 files NAME.xml, expected one"):
        open_engine(folder)
    with pytest.raises(ExportError, match=r"missing.pt2 does not exist"):
        open_engine(tmp_path / "missing.pt2")
    with pytest.raises(ExportError, match=r"is no exported file that can be run here; expected .onnx"):
        open_engine(tmp_path / "weights.safetensors")
    assert is_exported("weights.engine")
    with pytest.raises(ExportError, match=r"weights.engine is no exported file that can be run here"):
        open_engine(tmp_path / "weights.engine")
    for name in ("rtdetrv4-s", "weights.safetensors", "last.pt", "recipe.yaml", "folder/"):
        assert not is_exported(name)


def test_a_device_of_onnx_runtime_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package for GPUs lists CUDA where its libraries are missing, and falls back with a line in its log."""
    import onnxruntime

    class Session:
        def __init__(self, path: str, options: object, providers: list[object]) -> None:
            assert providers == [("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    runtime = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=Session,
        __version__="1",
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    with pytest.raises(ConfigError, match='ONNX Runtime cannot use "cuda" here'):
        open_engine(write_onnx(tmp_path, METADATA.to_json()), device="cuda:1")


def test_signals_are_handled_after_models_have_come_and_gone(tmp_path: Path) -> None:
    """On processors with AMX, a Core for each would leave a stack for signals that is gone; see `the_core`."""
    path = write_openvino(tmp_path, METADATA.to_json())
    script = f"""
import gc, os, signal
from rtdetrv4.runtime.engines import open_engine
caught = []
signal.signal(signal.SIGTERM, lambda *_: caught.append("caught"))
first, second = open_engine({str(path)!r}), open_engine({str(path)!r})
for name in ("first", "second"):
    del globals()[name]
    gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
print(*caught)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["caught"]
