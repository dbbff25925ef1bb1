"""What is written about an exported file can be read again, and says so if it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from made_up_export import REPORT
from rtdetrv4.errors import ExportError
from rtdetrv4.runtime.export_report import ExportReport, report_path


def test_a_report_survives_being_written(tmp_path: Path) -> None:
    path = report_path(tmp_path / "w.onnx")
    assert path.name == "w.onnx.report.json"
    path.write_text(REPORT.to_json(), encoding="utf-8")
    read = ExportReport.read(path)
    assert read.to_json() == REPORT.to_json()
    assert read.accuracy is not None
    assert read.accuracy.drop == pytest.approx(0.25)
    assert read.expected[0].boxes_xyxy_px[1][3] == 8
    assert json.loads(path.read_text(encoding="utf-8"))["accuracy"]["data"] == "datasets/é"


def test_the_report_of_a_folder_lies_beside_it() -> None:
    assert report_path(Path("runs/w_openvino")) == Path("runs/w_openvino.report.json")


def test_what_it_says_in_a_line() -> None:
    assert str(REPORT) == (
        "w.onnx agrees with PyTorch in ONNX Runtime 1.30 on CPU, 97.5 % of the 40 most confident detections matched, "
        "AP 53.00, in PyTorch 53.25; 10 images, in batches of 1, 2, 7."
    )


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"file": 1}', REPORT.to_json()[:-20]])
def test_a_damaged_one_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "w.onnx.report.json").write_text(content)
    with pytest.raises(ExportError, match=r"w\.onnx\.report\.json is damaged or of another version"):
        ExportReport.read(tmp_path / "w.onnx.report.json")
    with pytest.raises(ExportError, match=r"missing\.report\.json does not exist"):
        ExportReport.read(tmp_path / "missing.report.json")
