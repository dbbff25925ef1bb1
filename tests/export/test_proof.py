"""What is proven, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from made_up_export import REPORT
from rtdetrv4.cli import main
from rtdetrv4.errors import ExportError
from rtdetrv4.export import DeploymentModule, GraphOptions
from rtdetrv4.export.proof import Validation, _problem, prove
from rtdetrv4.models import fuse
from rtdetrv4.runtime.agreement import Matched
from rtdetrv4.runtime.export_report import Accuracy, report_path
from rtdetrv4.runtime.proof import Verification, verify_file

from .conftest import Exported, export


def edited(exported: Exported, folder: Path, name: str, factor: float) -> Path:
    """A copy of the file and its report, in which a weight of the exported network has changed."""
    graph = onnx.load(exported.path)
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), name))
            break
    else:
        raise AssertionError(f"no {name} among {[tensor.name for tensor in graph.graph.initializer]}")
    onnx.save(graph, folder / "edited.onnx")
    shutil.copy(report_path(exported.path), report_path(folder / "edited.onnx"))
    return folder / "edited.onnx"


NORM = "detector.query_selection.norm.norm.weight"


def test_a_changed_weight_is_noticed(square: Exported, tmp_path: Path) -> None:
    module = DeploymentModule(fuse(square.model).eval(), GraphOptions())
    same = prove(edited(square, tmp_path, NORM, 1.0), square.model, module, format="onnx", file="m.onnx")
    assert same.max_score < 1e-4
    with pytest.raises(
        ExportError, match=r"not agree with PyTorch in ONNX Runtime .*: \d+ of 252 detections in an image"
    ):
        prove(edited(square, tmp_path, NORM, 1.02), square.model, module, format="onnx", file="m.onnx")


def test_what_rounding_alone_changes_is_not_held_against_a_file(
    square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it pass: somewhere a file must be compared. Larger nudges stand for a model that amplifies rounding."""
    module = DeploymentModule(fuse(square.model).eval(), GraphOptions())
    wrong = edited(square, tmp_path, NORM, 1.02)
    monkeypatch.setattr("rtdetrv4.export.proof.NUDGE", 0.05)
    with pytest.raises(ExportError, match=r"rounding alone changes the detections in (\d|10) of 10 images"):
        prove(wrong, square.model, module, format="onnx", file="m.onnx")
    same = prove(edited(square, tmp_path, NORM, 1.0), square.model, module, format="onnx", file="m.onnx")
    assert same.num_undecided == 0


def test_verify_finds_the_same_without_the_model(square: Exported, tmp_path: Path) -> None:
    found = verify_file(square.path)
    assert found.matched.share == 1
    assert found.least_matched == 0.99
    assert found.elsewise is None
    assert found.matched.num_confident > 100
    assert found.report.model == "test"
    with pytest.raises(ExportError, match=r"edited\.onnx does not find on ONNX Runtime .* what PyTorch found"):
        verify_file(edited(square, tmp_path, NORM, 0.5))


@pytest.mark.parametrize(("of_file", "computed_in"), [("fp32", "fp32"), ("int8", "fp32"), ("bf16", "bf16")])
def test_verify_measures_accuracy_in_the_precision_of_the_file(
    of_file: str, computed_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the runtime prefers: the AP is compared with PyTorch's."""
    options: dict[str, object] = {}

    class Exported:
        def __init__(self, file: Path, **given: object) -> None:
            options.update(given)

        def val(self, data: str, *, split: str) -> SimpleNamespace:
            return SimpleNamespace(ap=0.52, ap50=0.8, num_images=20)

    report = REPORT._replace(precision=of_file)
    verification = Verification("a runtime", report, Matched(39, 40, 0.1, 0.01), 0.3, report.latency, "another, bf16")
    monkeypatch.setattr("rtdetrv4.runtime.proof.verify_file", lambda *_, **__: verification)
    monkeypatch.setattr("rtdetrv4.ExportedDetector", Exported)
    assert main(["verify", "w.onnx", "--data", "d", "--threads", "1", "--max-drop", "2"]) == 0
    assert options == {"device": None, "threads": 1, "precision": computed_in, "trust": False}
    out = capsys.readouterr().out
    assert "97.5 % of 40 confident detections as in PyTorch, at least 30 % expected" in out
    assert "predict and val run it in another, bf16" in out
    assert "AP 52.00; when it was exported 53.00, and in PyTorch 53.25" in out
    assert main(["verify", "w.onnx", "--data", "d", "--max-drop", "1"]) == 2
    assert "loses 1.25 points of AP to PyTorch on this machine" in capsys.readouterr().err


def test_verify_says_what_it_lacks(square: Exported, tmp_path: Path) -> None:
    path = edited(square, tmp_path, NORM, 1.0)
    content = json.loads(report_path(path).read_text())
    assert [scene["number"] for scene in content["expected"]] == [0, 1]
    content["expected"][0]["digest"] = "another image"
    report_path(path).write_text(json.dumps(content))
    with pytest.raises(ExportError, match="makes other images than the one that exported"):
        verify_file(path)
    report_path(path).write_text(json.dumps({**content, "expected": []}))
    with pytest.raises(ExportError, match="holds no detections to compare with"):
        verify_file(path)
    report_path(path).unlink()
    with pytest.raises(ExportError, match=r"edited\.onnx\.report\.json does not exist"):
        verify_file(path)


@pytest.mark.parametrize(
    ("precision", "matched", "drop", "problem"),
    [
        ("fp16", Matched(85, 100), None, ""),
        ("fp16", Matched(84, 100), None, "of 100 confident detections 84.0 % are found in fp16 as well, expected 85 %"),
        ("fp16", Matched(0, 0), None, ""),
        ("int8", Matched(20, 100), 0.4, ""),
        ("int8", Matched(99, 100), 0.61, "int8 costs 0.61 points of AP, from 50.00 to 49.39, and max_drop is 0.5"),
        ("bf16", Matched(20, 100), -3, ""),
    ],
)
def test_reduced_precision_may_cost_something(
    precision: str, matched: Matched, drop: float | None, problem: str
) -> None:
    accuracy = None if drop is None else Accuracy("d", "val", 9, 0.5 - drop / 100, 0.8, 0.5, 0.8)
    found = _problem(precision, matched, accuracy, None if drop is None else 0.5)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_accuracy_is_measured_in_the_runtime(square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(path: Path) -> tuple[float, float]:
        measured.append(path.name)
        return 0.41, 0.7

    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    validation = Validation("d", "val", 5, 0.42, 0.71, measure)
    report = export(square.model, tmp_path / "m.onnx", images=[photo] * 3, validation=validation)
    assert measured == ["m.onnx"]
    assert report.num_images == 13
    assert report.accuracy == Accuracy("d", "val", 5, 0.41, 0.7, 0.42, 0.71)
    assert report.accuracy.drop == pytest.approx(1)
