"""An exported model is evaluated without torch, on images whose answer is known.

The model finds one box, the middle of the image from a quarter to three quarters of its width, with the mean red, green
and blue as logits of its three classes.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx.parser
import pytest

from color_model import GRAPH, METADATA
from rtdetrv4 import Detector, ExportedDetector
from rtdetrv4.data.formats import read_splits
from rtdetrv4.errors import ConfigError, DatasetError, ExportError
from rtdetrv4.evaluation import CocoEvaluator, evaluate_exported
from rtdetrv4.runtime.export_metadata import METADATA_KEY
from rtdetrv4.runtime.slicing import Slicing
from rtdetrv4.types import ClassMap

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0)}


def write_model(folder: Path, batch: str = "batch") -> Path:
    model = onnx.parser.parse_model(GRAPH.format(batch=batch))
    onnx.helper.set_model_props(model, {METADATA_KEY: METADATA.to_json()})
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def write_data(folder: Path, *, num_each: int = 1) -> Path:
    """Plain images of 200×50. The box of a red one is exactly what the model finds; of a green one it covers 72 %."""
    part = folder / "data" / "valid"
    part.mkdir(parents=True)
    images, annotations = [], []
    for number in range(2 * num_each):
        label = "red" if number < num_each else "green"
        picture = np.full((50, 200, 3), COLORS[label], np.uint8)
        cv2.imwrite(str(part / f"{number}.png"), picture[..., ::-1])
        images.append({"id": number, "file_name": f"{number}.png", "width": 200, "height": 50})
        box = [50, 0, 100 if label == "red" else 72, 50]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 7 if label == "red" else 5, "bbox": box, "iscrowd": 0}
            | {"area": box[2] * box[3]}
        )
    categories = [{"id": 5, "name": "green"}, {"id": 7, "name": "red"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (part / "_annotations.coco.json").write_text(json.dumps(content))
    return folder / "data"


@pytest.mark.parametrize(("batch", "asked"), [("batch", None), ("batch", 3), ("4", None), ("1", 8)])
def test_ap_is_that_of_the_known_boxes(tmp_path: Path, batch: str, asked: int | None) -> None:
    """Red: every threshold is met. Green: IoU 0.72 meets five of the ten. Blue has no boxes."""
    detector = ExportedDetector(write_model(tmp_path, batch))
    for workers in (0, 2):
        metrics = detector.val(write_data(tmp_path / str(workers)), batch=asked, workers=workers)
        assert metrics.ap == pytest.approx(0.75)
        assert metrics.ap50 == pytest.approx(1)
        assert metrics.per_class["red"] == pytest.approx(1)
        assert metrics.per_class["green"] == pytest.approx(0.5)
        assert math.isnan(metrics.per_class["blue"])
        assert metrics.num_images == 2


def test_all_pairs_of_the_model_count(tmp_path: Path) -> None:
    classes = ClassMap(METADATA.names, METADATA.category_ids)
    split = read_splits(write_data(tmp_path), classes, ("val",)).val
    assert split is not None
    evaluator = CocoEvaluator(split.records, classes)
    evaluate_exported(ExportedDetector(write_model(tmp_path)), split, evaluator)
    red, green = evaluator.detections
    assert (red.labels.tolist(), green.labels.tolist()) == ([0, 1, 2], [1, 0, 2])
    np.testing.assert_allclose(red.scores, [1 / (1 + math.exp(-1)), 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(red.boxes_xyxy_px, [[50, 0, 150, 50]] * 3, atol=1e-4)


def test_tiles_are_those_of_predict(tmp_path: Path) -> None:
    detector = ExportedDetector(write_model(tmp_path))
    data = write_data(tmp_path)
    split = read_splits(data, ClassMap(METADATA.names, METADATA.category_ids), ("val",)).val
    assert split is not None
    evaluator = CocoEvaluator(split.records, split.classes)
    evaluate_exported(detector, split, evaluator, slicing=Slicing.of((50, 100), 0.0, True))
    found = detector.predict(data / "valid/0.png", conf=0, duplicates="keep", slice=(50, 100), overlap=0.0)[0]
    assert len(found) > 3
    np.testing.assert_allclose(evaluator.detections[0].boxes_xyxy_px, found.xyxy)
    np.testing.assert_allclose(evaluator.detections[0].scores, found.confidence)
    whole = CocoEvaluator(split.records, split.classes)  # an image that fits a tile is not cut
    evaluate_exported(detector, split, whole, slicing=Slicing.of((200, 200), 0.0, True))
    assert len(whole.detections[0].scores) == 3


def test_a_damaged_image_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = ExportedDetector(write_model(tmp_path))
    data = write_data(tmp_path, num_each=2)
    (data / "valid/1.png").write_bytes(b"damaged")
    assert detector.val(data).num_images == 3
    assert "1.png" in caplog.text
    assert "left out of the evaluation" in caplog.text
    (data / "valid/2.png").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"2 of 4 images cannot be read.*replace the files"):
        detector.val(data)


def test_what_an_exported_model_cannot_do_is_one_line(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    detector = Detector(path, device="cpu")
    assert isinstance(detector, ExportedDetector)
    assert detector.names == METADATA.names
    for method in ("train", "augment", "export"):
        with pytest.raises(ConfigError, match=rf"model.onnx is an exported model, which cannot be .*\.{method}\("):
            getattr(detector, method)("data", epochs=3)
    data = write_data(tmp_path)
    for options, message in (
        ({"imgsz": 64}, r"imgsz: got 64, but .*model.onnx was exported for 32x64; leave it out"),
        ({"split": "valid"}, 'There is no split "valid"'),
        ({"split": "test"}, "has no test part"),
        ({"batch": 0}, "batch: got 0, expected a whole number, 1 or more"),
        ({"workers": -1}, "workers: got -1, expected a whole number"),
    ):
        with pytest.raises((ConfigError, DatasetError), match=message):
            detector.val(data, **options)
    with pytest.raises(ConfigError, match="imgsz: got 320x320"):
        detector.predict(data / "valid/0.png", imgsz=(320, 320))
    assert len(detector.predict(data / "valid/0.png", imgsz="32x64")[0]) == 1
    with pytest.raises(ConfigError, match="Got weights twice"):
        Detector(path, "coco")
    with pytest.raises(ConfigError, match=r'device: got "cuda:7"'):
        Detector(path, device="cuda:7")
    with pytest.raises(ExportError, match="does not exist"):
        Detector(tmp_path / "missing_openvino")


def test_the_commands_need_only_the_base_install(tmp_path: Path) -> None:
    """In a process of its own, in which nothing can be imported that the base install does not have."""
    data, model = write_data(tmp_path), write_model(tmp_path)
    code = """
import sys
for name in ("torch", "torchvision", "scipy", "timm", "safetensors", "accelerate", "simplejpeg", "psutil", "matplotlib",
             "jinja2", "huggingface_hub", "tensorboard", "onnx", "openvino"):
    sys.modules[name] = None
from rtdetrv4.cli import main
print(main(sys.argv[1:]))
"""

    def run(*args: str | Path) -> tuple[str, str]:
        command = [sys.executable, "-c", code, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout, done.stderr

    out, _ = run("val", "--data", data, "--model", model)
    assert "75.00" in out
    assert out.endswith("0\n")
    out, _ = run("predict", data / "valid", "--model", model, "--conf", "0.6", "--device", "cpu")
    assert out.splitlines()[:2] == ["0.jpg: 1 red", "1.jpg: 1 green"]
    assert (tmp_path / "runs/predict/predictions.jsonl").is_file()
    out, err = run("val", "--data", data, "--model", model, "--out", tmp_path / "report")
    assert out == "2\n"
    assert err.splitlines()[-1] == 'error: jinja2 is not installed; install it with: pip install "rtdetrv4[eval]"'
    assert not (tmp_path / "report").exists()


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    data, model = write_data(tmp_path), write_model(tmp_path)
    code = """
import sys
sys.modules["torch"] = None
from rtdetrv4 import Detector
Detector(sys.argv[1]).val(sys.argv[2], out=sys.argv[3])
"""
    command = [sys.executable, "-c", code, str(model), str(data), str(tmp_path / "report")]
    subprocess.run(command, check=True)
    facts = json.loads((tmp_path / "report/evaluation.json").read_text())
    assert (facts["model"], facts["num_images"], facts["image_size"]) == ("test", 2, [32, 64])
    assert facts["speed"]["device"].startswith("ONNX Runtime")
    assert json.loads((tmp_path / "report/metrics.json").read_text())["ap"] == pytest.approx(0.75)
    assert "model.onnx" in (tmp_path / "report/report.html").read_text()


def test_where_a_file_runs_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rtdetrv4"):
        ExportedDetector(write_model(tmp_path))
    assert "model.onnx runs in ONNX Runtime" in caplog.text
