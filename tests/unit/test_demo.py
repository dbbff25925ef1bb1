"""What the demonstration tells at its end; the demonstration itself takes minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtdetrv4 import demo
from rtdetrv4.demo import _what_the_teacher_did, _where_to_look
from rtdetrv4.detector import Detector, TrainResult
from rtdetrv4.distillation import Teacher


def test_the_teacher_in_one_line(tmp_path: Path) -> None:
    epochs = [(0.78, 5.0, 2.8), (0.30, 12.0, 2.1), (0.24, 5.0, 1.5)]
    records = [{"type": "step", "losses": {"distill": 9.0}}] + [
        {"type": "epoch", "losses": {"distill": distance}, "distill_weight": weight, "modulation": {"share": share}}
        for distance, weight, share in epochs
    ]
    resting = {"type": "epoch", "losses": {}, "distill_weight": 0.0, "modulation": None}
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in [*records, resting]), encoding="utf-8")
    assert _what_the_teacher_did(log, "owl") == (
        "What owl did: L_DSI, its distance to the encoder's features, went from 0.78 to 0.24. GAM kept λ between 5 and "
        "12, and AIFI's share of the gradient between 1.5 and 2.8 %. The exported model contains nothing of it."
    )


def test_the_report_is_the_first_to_look_at(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    result = TrainResult(tmp_path, weights, tmp_path / "best.pt", tmp_path / "last.pt", None)
    lines = _where_to_look(result, tmp_path / "found.jpg", tmp_path / "demo.onnx").splitlines()
    assert lines[1].split() == ["report", str(tmp_path / "report.html")]
    assert [line.split()[-1] for line in lines[-2:]] == [str(weights), str(tmp_path / "demo.onnx")]


def test_an_interruption_tells_what_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt("the same command with --resume continues from there.")

    (tmp_path / "shapes/valid").mkdir(parents=True)
    (tmp_path / "shapes/valid/_annotations.coco.json").touch()
    monkeypatch.setattr(demo, "demo_teacher", lambda: Teacher(lambda images: images, name="owl", dim=3, stride=1))
    monkeypatch.setattr(Detector, "train", stop)
    with pytest.raises(KeyboardInterrupt, match=r"train; the same command resumes\.$"):
        demo.run_demo(tmp_path, lambda line: None)
