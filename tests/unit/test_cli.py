"""The command line, with a stand-in for the detector."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import rtdetrv4
from rtdetrv4 import Detections
from rtdetrv4.cli import main
from rtdetrv4.errors import DatasetError, SourceError, WeightsError
from rtdetrv4.runtime.detections import Count


def detections(path: str | None) -> Detections:
    """Two cats and a dog."""
    return Detections(
        xyxy=np.array([[0, 0, 5, 5]] * 3, dtype=np.float32),
        confidence=np.array([0.9, 0.8, 0.7], dtype=np.float32),
        class_id=np.array([0, 1, 0]),
        names=("cat", "dog"),
        image=np.zeros((8, 8, 3), dtype=np.uint8),
        path=path,
    )


class FakeDetector:
    """Remembers how it was called."""

    calls: ClassVar[list[tuple[str, tuple[Any, ...], dict[str, Any]]]]
    metrics: Any = SimpleNamespace(
        to_dict=lambda: {"ap": 0.5, "ap_small": None, "num_images": 3, "per_class": {"cat": 0.25, "dog [/old]": None}}
    )
    problems: tuple[str, ...] = ()
    error: BaseException | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        self._note("init", args, options)

    def _note(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.calls.append((name, args, options))
        if name != "init" and self.error is not None:
            raise self.error

    def train(self, *args: Any, **options: Any) -> Any:
        self._note("train", args, options)
        out = Path("runs/x")
        return SimpleNamespace(
            out=out, metrics=self.metrics, weights=out / "weights.safetensors", problems=self.problems
        )

    def augment(self, *args: Any, **options: Any) -> Any:
        self._note("augment", args, options)
        return Path("sheet-2.png")

    def val(self, *args: Any, **options: Any) -> Any:
        self._note("val", args, options)
        return self.metrics

    def predict(self, *args: Any, **options: Any) -> Any:
        self._note("predict", args, options)
        return map(detections, ["a/cat.png", "b/cat.png", None])

    def export(self, *args: Any, **options: Any) -> Path:
        self._note("export", args, options)
        return Path("weights.onnx")


@pytest.fixture(autouse=True)
def detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeDetector]:
    class Detector(FakeDetector):
        calls: ClassVar[list[tuple[str, tuple[Any, ...], dict[str, Any]]]] = []

    monkeypatch.setitem(vars(rtdetrv4), "Detector", Detector)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("i.jpg", "a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return Detector


def run(args: str) -> int:
    return main(args.split())


def mistake(args: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistaken command writes."""
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_train_passes_on_what_was_given(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    args = (
        "train --data d --model rtdetrv4-m --weights w.safetensors --teacher none --epochs 5 --batch 8 --imgsz 480x640 "
        "--lr 1e-4 --device 1 --workers 0 --cache ram --amp bf16 --seed 3 --tracker wandb --out runs/x "
        "--set optimizer.clip_norm=1e-1 --set run.amp=off"
    )
    assert run(args) == 0
    assert detector.calls == [
        ("init", (), {"model": "rtdetrv4-m", "weights": "w.safetensors"}),
        (
            "train",
            ("d",),
            {
                "epochs": 5,
                "batch": 8,
                "imgsz": (480, 640),
                "teacher": "none",
                "lr": 1e-4,
                "device": "cuda:1",
                "workers": 0,
                "cache": "ram",
                "amp": "bf16",
                "seed": 3,
                "out": "runs/x",
                "tracker": "wandb",
                "resume": False,
                "exist_ok": False,
                "overrides": {"optimizer.clip_norm": 0.1, "run.amp": "off"},
            },
        ),
    ]
    out = capsys.readouterr().out
    assert "50.00" in out
    assert "runs/x/weights.safetensors" in out


def test_train_prints_no_metrics_where_there_is_nothing_to_validate_on(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    detector.metrics = None
    assert run("train --data d") == 0
    assert capsys.readouterr().out == f"Weights: {Path('runs/x/weights.safetensors')}\n"


def test_train_leaves_the_rest_to_the_recipe(detector: type[FakeDetector]) -> None:
    assert main(["train", "--data", "d"]) == 0
    assert detector.calls == [
        ("init", (), {}),
        ("train", ("d",), {"resume": False, "exist_ok": False, "overrides": {}}),
    ]


def test_resume_needs_only_the_folder(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run to resume" in mistake("train --resume --out runs/x", capsys)
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/recipe.yaml").touch()
    assert "stopped before its first checkpoint" in mistake("train --resume --out runs/x", capsys)
    Path("runs/x/recipe.yaml").write_text("extends: deim-s\n")
    Path("runs/x/last.pt").touch()
    assert run("train --resume --out runs/x") == 0
    assert detector.calls == [
        ("init", (), {"model": str(Path("runs/x/recipe.yaml"))}),
        ("train", (None,), {"out": str(Path("runs/x")), "resume": True, "exist_ok": False, "overrides": {}}),
    ]


@pytest.mark.parametrize("words", ["--resume maybe", "--resume=runs/x", "--epochs 3 --resume True --seed 1"])
def test_resume_takes_no_value_but_auto(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(f"train --data d {words}", capsys)
    assert message.startswith('--resume: got "')
    assert message.endswith('", expected no value or auto. The run is named by --out.')


@pytest.mark.parametrize("words", ["--resume auto", "--resume=auto", "--auto-resume"])
def test_to_resume_if_there_is_something_is_one_option(words: str, detector: type[FakeDetector]) -> None:
    assert run(f"train --data d {words} --seed 1") == 0
    assert detector.calls[-1] == ("train", ("d",), {"seed": 1, "resume": "auto", "exist_ok": False, "overrides": {}})


def test_without_a_folder_the_latest_run_resumes(detector: type[FakeDetector]) -> None:
    for seconds, name in enumerate(("train-2", "train", "train-3")):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").touch()
        (folder / "last.pt").touch()
        os.utime(folder / "last.pt", (seconds, seconds))
    Path("runs/train-3/last.pt").unlink()  # stopped in its first epoch
    assert run("train --resume") == 0
    assert detector.calls[0] == ("init", (), {"model": str(Path("runs/train/recipe.yaml"))})
    assert detector.calls[1][2]["out"] == str(Path("runs/train"))


def test_an_earlier_run_is_overwritten_only_if_asked(detector: type[FakeDetector]) -> None:
    assert run("train --data d --out runs/x --exist-ok") == 0
    assert detector.calls[1][2]["exist_ok"] is True


def test_a_run_whose_report_failed_has_its_weights_and_an_exit_code(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    detector.problems = ("the final evaluation failed: no space",)
    detector.metrics = None
    assert run("train --data d") == 1
    assert capsys.readouterr().out == f"Weights: {Path('runs/x/weights.safetensors')}\n"


def test_augment_passes_on_what_was_given(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    args = (
        "augment d --model deim-s --weights none --epochs 5 --batch 8 --imgsz 480x640 --device cpu --seed 3 "
        "--images 2 --out sheet.png --set augment.mosaic=0.5"
    )
    assert run(args) == 0
    assert capsys.readouterr().out == f"Picture: {Path('sheet-2.png')}\n"
    assert run("augment d --budget 30m") == 0
    assert detector.calls == [
        ("init", (), {"model": "deim-s", "weights": "none"}),
        (
            "augment",
            ("d",),
            {
                "epochs": 5,
                "batch": 8,
                "imgsz": (480, 640),
                "device": "cpu",
                "seed": 3,
                "num_images": 2,
                "out": Path("sheet.png"),
                "overrides": {"augment.mosaic": 0.5},
            },
        ),
        ("init", (), {}),
        ("augment", ("d",), {"budget": "30m", "num_images": 6, "out": Path("runs/augment.jpg"), "overrides": {}}),
    ]


def test_val_prints_metrics_and_writes_a_report(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("val --data d --model runs/x/weights.safetensors --batch 4 --device cpu --out a/report") == 0
    assert detector.calls == [
        ("init", (), {"model": "runs/x/weights.safetensors", "device": "cpu"}),
        ("val", ("d",), {"split": "val", "batch": 4, "out": Path("a/report")}),
    ]
    out = capsys.readouterr().out
    assert "50.00" in out
    assert "ap of cat" in out
    assert "ap of dog [/old]" in out
    assert out.endswith(f"Results: {Path('a/report')}\n")

    Path("a/report").mkdir(parents=True)
    Path("a/report/metrics.json").write_text("mine")
    assert run("val --data d --model w.safetensors --out a/report") == 0
    assert detector.calls[-1][2]["out"] == Path("a/report-2")
    assert capsys.readouterr().out.endswith(f"Results: {Path('a/report-2')}\n")


def test_report_writes_a_page_for_whatever_a_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(folder: Path) -> Path:
        return folder / "report.html"

    monkeypatch.setattr("rtdetrv4.report.write_report", write)
    monkeypatch.setattr("rtdetrv4.comparison.summary.read_comparison", lambda folder: SimpleNamespace(out=folder / "c"))
    assert run(f"report {tmp_path}") == 0
    (tmp_path / "settings.json").touch()
    assert run(f"report {tmp_path}") == 0
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report.html'}\nReport: {tmp_path / 'c/report.html'}\n"


def test_tiles_and_the_best_thresholds_are_passed_on(detector: type[FakeDetector]) -> None:
    tiles = "--slice 480x640 --overlap 0.3 --no-whole"
    assert run(f"predict photos --model w.safetensors --conf best --batch 8 {tiles}") == 0
    given = {"slice": "480x640", "overlap": 0.3, "whole": False}
    options = {"conf": "best", "duplicates": "drop", "batch": 8, "stream": True, **given}
    assert detector.calls[1] == ("predict", ("photos",), options)
    assert run(f"val --data d --model w.safetensors {tiles}") == 0
    assert detector.calls[3] == ("val", ("d",), {"split": "val", **given})
    assert run("val --data d --model w.safetensors --slice 640") == 0
    assert detector.calls[5][2] == {"split": "val", "slice": "640"}


def test_predict_saves_pictures_and_records(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict photos --model w.safetensors --conf 0.5 --class cat --class dog --out found") == 0
    options = {"conf": 0.5, "classes": ["cat", "dog"], "duplicates": "drop", "stream": True}
    assert detector.calls[1] == ("predict", ("photos",), options)
    assert "cat.jpg: 2 cat, 1 dog" in capsys.readouterr().out
    records = [json.loads(line) for line in Path("found/predictions.jsonl").read_text().splitlines()]
    assert [record["path"] for record in records] == ["a/cat.png", "b/cat.png", None]
    assert [found["name"] for found in records[0]["detections"]] == ["cat", "dog", "cat"]
    assert sorted(path.name for path in Path("found").glob("*.jpg")) == ["cat-000001.jpg", "cat.jpg", "frame.jpg"]


@pytest.mark.parametrize("sources", ["missing.jpg", "photos missing", "missing/"])
def test_sources_are_looked_for_before_a_model_is(
    sources: str, detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake(f"predict {sources}", capsys).startswith("missing")
    assert detector.calls == []


def test_of_a_video_the_command_says_in_the_end_what_it_saw(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*_: object, **__: object) -> Any:
        """Two cats that stay, and a dog that is another one in each image, more of them than are kept."""
        for index in range(2500):
            points = ((0.0, 0.0), (1.0, 1.0))
            yield replace(
                detections("clip.avi"),
                frame_index=index,
                tracker_id=np.array([1, index + 10, 2 if index else -1]),
                counts=(Count("door", points, {"in": index, "out": 0}), Count("hall", points, {"inside": 3})),
            )

    monkeypatch.setattr(detector, "predict", predict)
    assert run("predict a.jpg --save jsonl") == 0
    *_, total, _ = capsys.readouterr().out.splitlines()
    assert total == "clip.avi: 2500 images, 2500 dog, 2 cat tracked; door: 2499 in, 0 out"


def test_predict_needs_no_model(detector: type[FakeDetector]) -> None:
    assert run("predict photos --out found") == 0
    assert detector.calls[0] == ("init", (), {})
    assert run("predict photos --model dfine-s --weights obj365 --out found") == 0
    assert detector.calls[2] == ("init", (), {"model": "dfine-s", "weights": "obj365"})


def test_predict_leaves_no_folder_where_nothing_can_be_predicted(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    detector.error = WeightsError("There are no weights.")
    assert mistake("predict photos --out found", capsys) == "There are no weights."
    assert not Path("found").exists()


def test_predict_writes_over_nothing(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict photos --model w.safetensors") == run("predict photos --model w.safetensors") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Results: {Path('runs/predict-2')}"
    assert sorted(Path("runs").iterdir()) == [Path("runs/predict"), Path("runs/predict-2")]
    detector.error = SourceError("photos does not exist")
    assert run("predict photos --model w.safetensors --out new") == 2
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("num_images", "complete"), [(0, "nothing"), (2, f"2 images in {Path('found')}")], ids=["at once", "later"]
)
def test_an_interrupted_prediction_leaves_whole_results(
    detector: type[FakeDetector],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    num_images: int,
    complete: str,
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        yield from map(detections, ["a.png", "b.png"][:num_images])
        raise KeyboardInterrupt

    monkeypatch.setattr(detector, "predict", stop)
    assert run("predict photos --model w.safetensors --out found") == 130
    assert capsys.readouterr().err == f"interrupted. Complete: {complete}.\n"
    assert (
        sorted(path.name for path in Path("found").glob("*"))
        == ["a.jpg", "b.jpg", "predictions.jsonl"][: 2 * num_images]
    )


@pytest.mark.parametrize("model", ["w.onnx", "w_openvino/", "w_openvino/w.xml", "w.pt2"])
def test_exported_models_need_no_torch(
    detector: type[FakeDetector], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert run(f"predict photos --model {model} --out found") == 0
    assert Path("found/cat.jpg").is_file()
    assert run(f"val --data d --model {model} --split test --device gpu.1") == 0
    assert "ap of cat" in capsys.readouterr().out
    assert detector.calls == [
        ("init", (), {"model": model}),
        ("predict", ("photos",), {"conf": 0.25, "duplicates": "drop", "stream": True}),
        ("init", (), {"model": model, "device": "gpu.1"}),
        ("val", ("d",), {"split": "test"}),
    ]


def test_export(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export --model w.safetensors --imgsz 320 --opset 18 --batch 1 --out x.onnx") == 0
    options = {"batch": 1, "out": "x.onnx", "imgsz": (320, 320), "opset": 18}
    assert detector.calls[1] == ("export", ("onnx",), options)
    assert "weights.onnx" in capsys.readouterr().out
    assert (
        run(
            "export w.safetensors -f onnx,openvino -p fp16 --raw --frames --no-grid-sample --class cat --class dog "
            "--data d --max-drop 1"
        )
        == 0
    )
    options = {"precision": "fp16", "postprocess": False, "frames": True, "grid_sample": False}
    options |= {"classes": ["cat", "dog"], "data": "d", "max_drop": 1.0}
    assert detector.calls[3] == ("export", (["onnx", "openvino"],), options)


def test_convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def convert_weights(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return SimpleNamespace(model="dfine-s", num_classes=80)

    monkeypatch.setattr("rtdetrv4.assembly.conversion.convert_weights", convert_weights)
    assert run("convert dfine_s_coco.pth --out a.safetensors") == 0
    assert run("convert a.safetensors -o hf -m dfine-s --to transformers --trust") == 0
    assert calls == [
        (("dfine_s_coco.pth", Path("a.safetensors")), {"model": None, "to": "ours", "trust": False}),
        (("a.safetensors", Path("hf")), {"model": "dfine-s", "to": "transformers", "trust": True}),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "dfine-s with 80 classes: hf"


def test_demo_runs_the_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setitem(sys.modules, "rtdetrv4.demo", SimpleNamespace(run_demo=lambda out, _: folders.append(out)))
    assert run("demo --out runs/d") == 0
    assert folders == [Path("runs/d")]


def test_models_lists_every_model_but_the_one_for_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "rtdetrv4-s" in out
    assert "deim-rtdetrv2-r50" in out
    assert "test" not in out
    assert out.count("hgnetv2_b0") == 6 + 8
    assert max(map(len, out.splitlines())) <= 80
    cells = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert cells["dfine-s"] == ["hgnetv2_b0", "10.2", "M", "48.5", "✓", "50.7", "Apache-2.0"]
    assert cells["rtdetrv4-s"] == ["hgnetv2_b0", "10.2", "M", "3.66", "49.8", "Apache-2.0"]
    assert cells["rtdetrv4-n"] == ["hgnetv2_b0", "3.8", "M"]


def test_models_prints_a_recipe_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "deim-m"]) == 0
    assert rtdetrv4.load_recipe("deim-m").schedule.epochs == 102
    assert "epochs: 102" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("trian", "Did you mean 'train', 'pretrain'?"),
        ("train --data d --epocs 5", 'No such option: --epocs. Did you mean "--epochs"?'),
        ("train --data d epochs=5", 'Options are written "--epochs 50", other settings "--set name=value".'),
        ("train --data d --epochs many", '--epochs: got "many", expected a whole number.'),
        ("train", "Missing option --data: a folder with a COCO, YOLO, Pascal VOC, LabelMe or CVAT data set."),
        ("train --data d --imgsz 650", '--imgsz: got "650", expected multiples of 32, such as 640 or 672.'),
        ("train --data d --device gpu", '--device: got "gpu", expected auto, cpu, cuda, cuda:INDEX, mps or xpu.'),
        ("train --data d --set epochs", 'Got "epochs", expected NAME=VALUE'),
        ("train --data d --epochs 0", "schedule.epochs: got 0 (int), expected greater than or equal to 1."),
        ("train --data d --set optimizer.lrr=1", 'Did you mean "optimizer.lr"?'),
        ("train --data d --model w.pth --set optimizer.lrr=1", 'Did you mean "optimizer.lr"?'),
        ("train --data d --budget 1x", 'budget: got "1x", expected a duration above zero, such as 90s, 30m or 2h.'),
        ("train --data d --model test --budget 1x", 'budget: got "1x", expected a duration'),
        ("train --data d --model w.pth --budget 1x", 'budget: got "1x", expected a duration'),
        ("train --data d --model test --budget 9m", "of this test are taken as they are, because run.derive is false"),
        ("train --data d --epochs 5 --budget 9m", "Got both epochs and budget"),
        ("augment d --set augment.mosaic=2.0", "augment.mosaic: got 2.0 (float), expected less than or equal to 1."),
        ("val --data d", "--model"),
        ("val --data d --model w.safetensors --imgsz 65", '--imgsz: got "65", expected multiples of 32'),
        ("compare --data d --batch 0", '--batch: got "0", expected a number of images or auto.'),
        ("predict a --model w.safetensors --conf 3", '--conf: got "3", expected a number from 0 to 1, or best.'),
        ("predict a --model w.safetensors --conf high", '--conf: got "high", expected a number'),
        ("predict a --model w.safetensors --conf nan", '--conf: got "nan", expected a number'),
        ("predict a --model w.safetensors --slice big", "slice: got big, expected the side of a square"),
        ("predict a --model w.safetensors --slice 640 --overlap 1", "overlap: got 1.0, expected a share"),
        ("predict a --model w.safetensors --overlap 0.1", "belong to tiles; give their size, such as --slice 640"),
        ("val --data d --model w.safetensors --no-whole", "belong to tiles; give their size, such as --slice 640"),
        ("export", "Missing argument MODEL"),
        ("export a.safetensors --model b.safetensors", "Got two models"),
        ("predict --source a.jpg", "--source. What to look at is given without an option"),
        ("predict a.jpg --model w.onnx --iou 0.5", "--iou. There is no NMS whose overlap could be set"),
        ("predict a.jpg --threshold 0.5", 'Did you mean "--conf"?'),
        ("train --data d --batch-size 4", 'Did you mean "--batch"?'),
        ("train --data d --threshold 0.5", "No such option: --threshold"),
        ("train --data d --lr=fast", 'got "fast", expected a number.'),
        ("serve w.onnx --port 99999", 'got "99999", expected at most 65535.'),
        ("detect a.jpg", 'No such command: detect. Did you mean "predict"?'),
        ("forget", "See rtdetrv4 --help."),
        ("serve w.onnx --max-request-mib inf", "--max-request-mib: got inf, expected a finite number."),
        ("serve w.onnx --max-megapixels 1e308", "--max-megapixels: got 1e+308, expected less than 1e+09."),
        ("bench w.onnx --seconds nan", "--seconds: got nan, expected a finite number."),
        ("convert dfine-s --out /", "/ must end in .safetensors, such as /weights.safetensors."),
        ("export a.safetensors -f tflite", 'format: got "tflite", expected onnx'),
        ("export a.safetensors -f pt2 -p int8", 'precision: got "int8", but pt2 comes in fp32.'),
        ("verify missing.onnx", "missing.onnx does not exist"),
        ("doctor d --model w.onnx", "w.onnx is an exported model; the doctor looks for wrong labels with weights."),
        ("val --data d --model w.safetensors --device gpu", '--device: got "gpu", expected auto, cpu'),
        ("models rtdetrv4_s", 'Did you mean "rtdetrv4-s"?'),
        ("convert w.pth", "Missing option --out: File to write, or folder for transformers."),
        ("val", "Missing option --data: Data set: a folder (COCO, YOLO,"),
        ("predict", "Missing argument SOURCE…: Images, videos, folders,"),
        ("convert w.pth --out w.pt", "w.pt must end in .safetensors, such as w.safetensors."),
        ("convert dfine-s --out w.safetensors", "download https://github.com/Peterande/storage"),
    ],
)
def test_a_mistake_is_one_line(args: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(args, capsys)


def test_mistakes_are_told_before_torch_is_imported() -> None:
    lines = (
        "train --data d --budget 1x",
        "train --data d --amp bf17",
        "train --data d --model test --set run.seed=-1",
        "augment d --imgsz 65",
        "val --data d --model w.safetensors --imgsz 65",
        "predict a --conf 3",
        "compare --data d --imgsz 65",
        "compare --data d --epochs 0",
    )
    script = "import sys; from rtdetrv4.cli import main; print(*(main(a.split()) for a in sys.argv[1:]), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == len(lines), done.stderr
    *codes, modules = done.stdout.split(maxsplit=len(lines))
    assert set(codes) == {"2"}
    assert "torch" not in modules.split()


def test_errors_of_the_package_are_one_line(detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]) -> None:
    detector.error = DatasetError("No annotations in d.\nExpected a JSON file.")
    assert mistake("train --data d", capsys) == "No annotations in d. Expected a JSON file."


def test_files_that_cannot_be_opened_are_one_line(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    detector.error = PermissionError(13, "Permission denied", "runs/x")
    assert mistake("train --data d", capsys) == "runs/x: Permission denied"


@pytest.mark.parametrize(("command", "extra"), [("train --data d", "train"), ("export --model w", "export")])
def test_a_missing_package_names_its_extra(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str], command: str, extra: str
) -> None:
    detector.error = ModuleNotFoundError("No module named 'scipy.optimize'", name="scipy.optimize")
    line = mistake(command, capsys)
    assert line == f'scipy is not installed; install it with: pip install "rtdetrv4[{extra}]"'


@pytest.mark.parametrize(("command", "extra"), [("train --data d", "train"), ("predict i.jpg --model w", "torch")])
def test_without_torch_the_extra_is_that_of_the_command(
    detector: type[FakeDetector],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    extra: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert mistake(command, capsys) == f'torch is not installed; install it with: pip install "rtdetrv4[{extra}]"'


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB.\nSee"),
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (MemoryError(), "MemoryError"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str], error: Exception, cause: str
) -> None:
    detector.error = error
    line = mistake("val --data d --model w.safetensors", capsys)
    assert line == f"out of memory ({cause}). Use a smaller batch or image size, or close other programs."


@pytest.mark.parametrize(
    "error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("libtorch.so: undefined symbol: x")]
)
def test_packages_that_do_not_fit_together_are_one_line(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    detector.error = error
    line = mistake("train --data d", capsys)
    assert line.startswith(f"the installed packages do not fit together: {error}. Found torch ")
    assert line.endswith("install both anew, in one command and from the same index.")


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shapes cannot be multiplied")])
def test_errors_that_are_not_the_users_are_not_hidden(detector: type[FakeDetector], error: Exception) -> None:
    detector.error = error
    with pytest.raises(type(error)):
        main(["train", "--data", "d"])


def test_a_sigterm_before_the_first_step_is_no_silent_end(
    monkeypatch: pytest.MonkeyPatch, detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(detector, "train", train)
    before = signal.getsignal(signal.SIGTERM)
    assert run("train --data d") == 130
    assert capsys.readouterr().err == "interrupted. Training had not begun.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_training_tells_how_to_go_on(
    detector: type[FakeDetector], capsys: pytest.CaptureFixture[str]
) -> None:
    detector.error = KeyboardInterrupt("Stopped in epoch 3;\nthe same command with --resume goes on from there.")
    assert run("train --data d --out runs/x") == 130
    expected = "interrupted. Stopped in epoch 3; the same command with --resume goes on from there.\n"
    assert capsys.readouterr().err == expected
    detector.error = KeyboardInterrupt()
    assert run("train --data d") == 130
    assert capsys.readouterr().err == "interrupted. Training had not begun.\n"
    assert run("export --model w.safetensors") == 130
    expected = "interrupted. The export was not finished; no file was replaced that had not passed its check.\n"
    assert capsys.readouterr().err == expected
    assert run("val --data d --model w.safetensors --out report") == 130
    assert (
        capsys.readouterr().err == "interrupted. The evaluation is not complete; files that it has written are whole.\n"
    )


def test_names_that_are_no_text_are_printed_as_escapes() -> None:
    code = """
import sys
import time
from rtdetrv4.cli import main
main(["--version"])
print("caf\\udce9")
"""
    assert run_python(code).splitlines()[-1] == r"caf\udce9"


def test_class_names_are_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("bolt [red]", "valve [/open]", "[link=x]:smile:")
    table = SimpleNamespace(
        title="Class by class", note="", header=("class", "off"), rows=[(name, "1") for name in names]
    )
    comparison = SimpleNamespace(tables=[table], unfinished=(), out=Path("c"))
    monkeypatch.setattr("rtdetrv4.comparison.read_comparison", lambda *_: comparison)
    assert run("compare --report --out c") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
import time
from rtdetrv4.cli import main
for args in (["--help"], ["train", "--help"], ["models"], ["models", "rtdetrv4-s"]):
    assert main(args) == 0
print("heavy:", sorted({"torch", "timm", "numpy", "cv2", "accelerate", "scipy"} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "heavy: []"


def test_importing_the_package_imports_only_the_package() -> None:
    code = """
import sys
import time
import rtdetrv4
print(sorted(name for name in sys.modules if name.startswith("rtdetrv4")), "torch" in sys.modules)
"""
    assert run_python(code).strip() == "['rtdetrv4'] False"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("rtdetrv4") == rtdetrv4.__version__


def test_public_names_are_sorted_and_unknown_ones_refused() -> None:
    assert rtdetrv4.__all__ == sorted(rtdetrv4.__all__)
    assert set(rtdetrv4.__all__) <= set(dir(rtdetrv4))
    assert rtdetrv4.ConfigError is importlib.import_module("rtdetrv4.errors").ConfigError
    with pytest.raises(AttributeError, match="has no attribute 'Detektor'"):
        _ = rtdetrv4.Detektor  # pyright: ignore[reportAttributeAccessIssue]


def test_a_detector_of_an_exported_model_imports_no_torch() -> None:
    code = """
import sys
import time
from rtdetrv4 import Detector, ExportedDetector
try:
    Detector("missing.onnx")
except Exception as error:
    print(type(error).__name__)
heavy = {"torch", "torchvision", "timm", "scipy", "pydantic", "matplotlib", "faster_coco_eval"}
print(ExportedDetector.__module__, sorted(heavy & set(sys.modules)))
"""
    assert run_python(code).splitlines() == ["ExportError", "rtdetrv4.exported_detector []"]


def test_the_torch_extra_is_enough_to_predict() -> None:
    code = """
import sys
import time
for module in ("accelerate", "matplotlib", "psutil", "scipy", "simplejpeg", "tensorboard"):
    sys.modules[module] = None
from rtdetrv4 import Detector
print(Detector("test").__module__)
"""
    assert run_python(code).strip() == "rtdetrv4.detector"


def test_without_torch_the_detector_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(rtdetrv4), "Detector")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(rtdetrv4.MissingDependencyError, match=r'pip install "rtdetrv4\[torch\]"'):
        rtdetrv4.Detector("rtdetrv4-s")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(rtdetrv4.MissingDependencyError, match=r'pip install "rtdetrv4\[train\]"'):
        _ = rtdetrv4.Observer


def test_several_sources_at_once(detector: type[FakeDetector], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def predict(_: object, source: object, **__: object) -> list[object]:
        asked.append(source)
        return []

    monkeypatch.setattr(detector, "predict", predict)
    assert main(["predict", "a.jpg", "b.jpg", "--out", str(tmp_path / "both")]) == 0
    assert main(["predict", "a.jpg", "--out", str(tmp_path / "one")]) == 0
    assert asked == [["a.jpg", "b.jpg"], "a.jpg"]


def test_a_precision_is_for_exported_files(capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake("predict a.jpg -m w.safetensors --precision fp32", capsys)
    assert message == '--precision fp32 is for exported files; got "w.safetensors".'


def test_a_termination_cleans_up(detector: type[FakeDetector], monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[str] = []

    def export(_: object, *__: object, **___: object) -> Path:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)  # the signal comes at once
        finally:
            cleaned.append("yes")
        return Path()

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(detector, "export", export)
    assert main(["export", "w.safetensors"]) == 130
    assert cleaned == ["yes"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_argument_with_a_null_character(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "data", "--fix", "a\0b"]) == 2
    assert capsys.readouterr().err == "error: an argument has a null character, which no file and no setting has\n"
