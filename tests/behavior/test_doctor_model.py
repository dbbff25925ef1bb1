"""The doctor asks a trained model about labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rtdetrv4 import Detector
from rtdetrv4.assembly import create_model
from rtdetrv4.cli import main
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.synthetic import CLASSES, write_shapes
from rtdetrv4.doctor import doctor
from rtdetrv4.errors import DatasetError
from rtdetrv4.weights import save_weights


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes listed the other way round, one of them by another name, and a damaged image."""
    folder = write_shapes(tmp_path_factory.mktemp("shapes"), num_train=3, num_val=4, image_size=64)
    for part in ("train", "valid"):
        path = folder / part / "_annotations.coco.json"
        content = json.loads(path.read_text())
        for number, category in enumerate(reversed(content["categories"])):
            category["id"] = 10 + number
            category["name"] = "other" if category["name"] == "cross" else category["name"]
        for row in content["annotations"]:
            row["category_id"] = 15 - row["category_id"]
        path.write_text(json.dumps(content))
    damaged = folder / "valid/shapes_00001.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    facts = {"model": "test", "names": list(CLASSES), "category_ids": [1, 2, 3, 4, 5], "trained": True}
    save_weights(create_model("test", num_classes=5).state_dict(), path, facts)
    return path


def test_detections_are_those_of_predict_by_the_names_of_the_data(shapes: Path, weights: Path) -> None:
    detector = Detector(weights=weights)
    split = read_splits(shapes).val
    assert split is not None
    assert split.classes.names == ("other", "star", "triangle", "square", "disc")
    found = detector.detections_in(split)
    assert [each is None for each in found] == [False, True, False, False]
    for record, detections in zip(split.records, found, strict=True):
        if detections is None:
            continue
        (predicted,) = detector.predict(split.image_dir / record.info.file_name, conf=0.0, duplicates="keep")
        known = [name != "cross" for name in predicted.class_name]
        names = [split.classes.names[label] for label in detections.labels.tolist()]
        assert names == [name for name, is_known in zip(predicted.class_name, known, strict=True) if is_known]
        np.testing.assert_allclose(detections.scores, predicted.confidence[known], atol=1e-5)
        np.testing.assert_allclose(detections.boxes_xyxy_px, predicted.xyxy[known], atol=1e-2)


def test_a_model_of_other_classes_is_refused(shapes: Path, weights: Path) -> None:
    split = read_splits(shapes).val
    assert split is not None
    other = split._replace(classes=split.classes._replace(names=tuple("abcde")))
    with pytest.raises(DatasetError, match="none of these classes"):
        Detector(weights=weights).detections_in(other)


def test_the_command_line_takes_a_model(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "checked"
    assert main(["doctor", str(shapes), "--model", str(weights), "--out", str(out), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "doctor.json").read_text())
    assert "D101" in {finding["code"] for finding in printed["findings"]}
    expected = doctor(shapes, detect=Detector(weights=weights).detections_in, input_hw=(64, 64))
    assert printed["findings"] == json.loads(expected.to_json())["findings"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "coco"], "--model"),
        (["--fix", "."], "exists already"),
        (["--fix", "{shapes}/fixed"], "outside of it"),
        (["--imgsz", "0"], "--imgsz"),
    ],
)
def test_mistakes_are_one_line(
    shapes: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(shapes), *(option.format(shapes=shapes) for option in options)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
