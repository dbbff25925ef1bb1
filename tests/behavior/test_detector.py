"""The whole way on the smallest model: train, evaluate, predict, go on, fine-tune, and what a user may get wrong."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

from rtdetrv4 import ConfigError, DatasetError, Detector, Observer, SourceError, WeightsError
from rtdetrv4.assembly.conversion import convert_weights
from rtdetrv4.config import load_recipe, override
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.detector import TrainResult
from rtdetrv4.distillation import Teacher
from rtdetrv4.evaluation import CocoEvaluator, ImageDetections
from rtdetrv4.runtime.export_report import ExportReport, report_path
from rtdetrv4.training import Trainer
from rtdetrv4.training.observers import EpochReport, StepReport, read_log
from rtdetrv4.training.run_curves import draw_curves
from rtdetrv4.training.symptoms import LossWatch
from rtdetrv4.weights import read_metadata


def small_teacher() -> Teacher:
    torch.manual_seed(7)
    return Teacher(torch.nn.Conv2d(3, 6, 32, 32), name="tiny", dim=6, stride=32, license="none")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=4, image_size=64)


@pytest.fixture(scope="module")
def trained(
    shapes: Path, tmp_path_factory: pytest.TempPathFactory, drawn: Callable[..., AbstractContextManager[None]]
) -> Path:
    """Folder of a finished run with a teacher, with its last figures drawn."""
    out = tmp_path_factory.mktemp("run")
    settings = {"distillation.mode": "gam", "distillation.rho": 50.0}
    with drawn("confusion_matrix.png", "f1_confidence.png", "precision_recall.png"):
        Detector("test").train(shapes, out=out, teacher=small_teacher(), overrides=settings)
    with drawn("curves.png"):
        draw_curves(read_log(out / "log.jsonl"), out / "curves.png")
    return out


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    expected = {"weights.safetensors", "best.pt", "last.pt", "curves.png", "predictions.jpg", "log.jsonl"}
    expected |= {"train_batch.jpg", "train_batch-dense.jpg", "train_batch-refinement.jpg"}
    expected |= {"recipe.yaml", "run.json", "report.html", "report.json", "val", "tensorboard"}
    assert expected <= {path.name for path in trained.iterdir()}
    assert {path.name for path in (trained / "val").iterdir()} >= {"metrics.json", "confusion_matrix.png"}
    facts = json.loads((trained / "run.json").read_text())
    assert facts["data"]["train"]["images"] == 8
    assert len(facts["data"]["train"]["fingerprint"]) == 64
    assert facts["start"] == {"kind": "none", "source": None, "sha256": None}
    assert torch.__version__.startswith(facts["versions"]["torch"])


def test_the_report_of_a_run_is_complete(trained: Path, shapes: Path) -> None:
    content = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert content["left_out"] == []
    assert content["curves"]["epoch"] == [1, 2, 3, 4]
    assert [each["file"] for each in content["similarity"]] == sorted(p.name for p in (shapes / "valid").glob("*.jpg"))
    assert all(-1 <= each["mean_cosine"] <= 1 for each in content["similarity"])
    assert content["evaluation"]["speed"]["median_ms"] > 0
    assert content["evaluation"]["image_dir"] == str((shapes / "valid").resolve())
    html = (trained / "report.html").read_text(encoding="utf-8")
    assert "Student and teacher" in html
    assert "Where AP is lost" in html


def test_val_leaves_a_report_where_it_is_asked_to(trained: Path, shapes: Path, tmp_path: Path) -> None:
    detector = Detector(trained / "weights.safetensors")
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen/report.html").write_text("mine")
    detector.val(shapes, split="train", out=tmp_path / "seen")
    assert (tmp_path / "seen/report.html").read_text() == "mine"
    content = json.loads((tmp_path / "seen-2/report.json").read_text(encoding="utf-8"))
    assert (content["kind"], content["evaluation"]["split"]) == ("evaluation", "train")
    assert content["evaluation"]["data"] == str(shapes)
    assert content["metrics"]["num_images"] == 8


def test_distillation_is_logged_and_moves_its_weight(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "modulation" in line]
    assert len(epochs) == 4
    assert all(0 < line["modulation"]["share"] < 49 for line in epochs), "one process must see AIFI's gradient"
    assert epochs[0]["modulation"]["reason"] == "below"
    assert epochs[1]["distill_weight"] > epochs[0]["distill_weight"]
    assert all(0 < line["losses"]["distill"] < 2 for line in epochs)


def test_weights_know_everything(trained: Path, shapes: Path) -> None:
    detector = Detector(trained / "weights.safetensors")
    assert detector.names == ("disc", "square", "triangle", "star", "cross")
    assert detector.recipe.model.name == "test"
    assert detector.recipe.model.image_size == (64, 64)
    assert detector.metadata is not None
    assert detector.metadata.training_hw((64, 64)) == (64, 64)
    assert detector.metadata.training_hw((32, 128)) == (32, 128), "half as high, twice as wide an input"
    logged = json.loads((trained / "val" / "metrics.json").read_text())
    metrics = detector.val(shapes).to_dict()
    assert metrics["ap"] == pytest.approx(logged["ap"], abs=1e-9)

    photo = next((shapes / "valid").glob("*.jpg"))
    (found,) = detector.predict(photo, conf=0.0)
    pixels = np.array(Image.open(photo))
    (again,) = detector.predict(pixels, conf=0.0)
    np.testing.assert_allclose(found.xyxy, again.xyxy, atol=1e-3)
    assert len(found) > 0
    assert found.confidence.max() <= 1
    streamed = detector.predict([pixels] * 3, conf=0.0, batch=2, stream=True)
    counts = [len(each) for each in streamed]
    assert counts == [len(found)] * 3


def test_weights_are_read_once(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    def count(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(file: Any, *args: Any, **options: Any) -> Any:
            opened.append(name)
            return original(file, *args, **options)

        return counted

    monkeypatch.setattr("safetensors.safe_open", count("safetensors", safetensors.safe_open))
    monkeypatch.setattr("torch.load", count("pickle", torch.load))
    for file, kind in (("weights.safetensors", "safetensors"), ("best.pt", "pickle")):
        opened.clear()
        detector = Detector(trained / file)
        detector.predict(np.zeros((64, 64, 3), dtype=np.uint8))
        assert detector.metadata is not None
        assert detector.metadata.facts["teacher"] == {"name": "tiny", "license": "none"}
        assert opened == [kind]
    exported: list[dict[str, str]] = []
    monkeypatch.setattr("rtdetrv4.export.export_model", lambda *_, facts, **__: exported.append(facts))
    detector.export()
    assert exported == [{"teacher": "tiny", "teacher_license": "none"}]
    facts = detector.metadata.facts
    for teacher, terms in (({"licence": "mit"}, "mit"), ({}, "unknown")):
        detector.metadata = detector.metadata._replace(facts={**facts, "teacher": {"name": "tiny", **teacher}})
        detector.export()
        assert exported[-1] == {"teacher": "tiny", "teacher_license": terms}
    convert_weights(trained / "weights.safetensors", tmp_path / "again.safetensors")
    assert opened == ["pickle", "safetensors"]


@pytest.fixture(scope="module")
def fresh(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, TrainResult]:
    """A detector that was trained for an epoch with seed 3."""
    detector = Detector("test")
    return detector, detector.train(shapes, epochs=1, out=tmp_path_factory.mktemp("fresh"), seed=3)


def test_the_detector_in_memory_is_the_one_on_disk(shapes: Path, fresh: tuple[Detector, TrainResult]) -> None:
    detector, result = fresh
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (mine,), (theirs,) = (each.predict(image, conf=0.0) for each in (detector, Detector(result.weights)))
    np.testing.assert_allclose(mine.confidence, theirs.confidence, rtol=1e-5)
    assert detector.val(shapes).ap == pytest.approx(result.metrics.ap, abs=1e-9)
    assert detector.metadata is not None
    assert detector.metadata.facts == read_metadata(result.weights).facts


def test_the_best_thresholds_are_remembered(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is too bad to have any, so the report makes them up."""
    best = {"disc": 0.9, "square": 0.01, "triangle": 0.02, "star": 1.0, "cross": 0.0}
    report = {"confidence": 0.2, "thresholds": best, "ap": 0.0}
    monkeypatch.setattr("rtdetrv4.appraisal.write_evaluation", lambda *_: report)
    detector = Detector("test")
    weights = detector.train(shapes, epochs=1, out=tmp_path, tracker="none").weights
    photos = sorted((shapes / "valid").glob("*.jpg"))
    exported: list[dict[str, float]] = []
    monkeypatch.setattr("rtdetrv4.export.export_model", lambda *_, thresholds, **__: exported.append(thresholds))
    convert_weights(weights, tmp_path / "again.safetensors")
    for each in (detector, Detector(weights), Detector(tmp_path / "again.safetensors")):
        assert each.metadata is not None
        assert each.metadata.thresholds == best
        assert each.metadata.facts["confidence"] == 0.2
        each.export()
        assert exported.pop() == best
        found, expected, everything = (
            [len(one) for one in each.predict(photos, conf=conf, duplicates="keep")] for conf in ("best", best, 0.0)
        )
        assert found == expected
        assert 0 < sum(found) < sum(everything)
    with pytest.raises(ConfigError, match="remembers no thresholds; training stores them in its weights"):
        Detector(tmp_path / "best.pt").predict(photos, conf="best")
    monkeypatch.setattr("rtdetrv4.appraisal.write_evaluation", lambda *_: {"confidence": None, "thresholds": {}})
    detector.train(shapes, epochs=1, out=tmp_path / "worse", tracker="none")
    assert detector.metadata is not None
    assert detector.metadata.thresholds is None, "those of the weights that it started from are not its own"


def test_evaluation_in_tiles_counts_what_prediction_in_tiles_finds(trained: Path, shapes: Path, tmp_path: Path) -> None:
    """What the model finds in tiles is taken for the truth."""
    detector = Detector(trained / "weights.safetensors")
    options: dict[str, Any] = {"slice": (32, 64), "overlap": 0.5, "whole": False}
    folder = shutil.copytree(shapes, tmp_path / "data")
    annotations = next((folder / "valid").glob("*.json"))
    content = json.loads(annotations.read_text())
    content["annotations"] = []
    for image in content["images"]:
        (found,) = detector.predict(folder / "valid" / image["file_name"], conf=0.0, **options)
        for left, top, right, bottom in found.xyxy[:3].tolist():
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(found.category_id[0]),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
            )
    annotations.write_text(json.dumps(content))
    split = read_splits(folder, detector.classes, ("val",)).val
    assert split is not None
    results = []
    for given in ({"slice": 48}, options):
        evaluator = CocoEvaluator(split.records, split.classes)
        for record in split.records:
            path = split.image_dir / record.info.file_name
            (found,) = detector.predict(path, conf=0.0, duplicates="keep", batch=3, **given)
            kept = ImageDetections(found.xyxy[:300], found.confidence[:300], found.class_id[:300])
            evaluator.merge([{record.info.image_id: kept}])
        results.append(detector.val(folder, **given))
        assert results[-1].ap == pytest.approx(evaluator.compute().ap, abs=1e-6)
        assert results[-1].ar100 == pytest.approx(evaluator.compute().ar100, abs=1e-6)
    assert results[1].ar100 > 0.5 > results[0].ar100
    assert detector.val(folder, slice=64).to_dict() == detector.val(folder).to_dict()
    with pytest.raises(ConfigError, match="slice: got 10, expected the side of a square"):
        detector.val(folder, slice=10)


def test_a_letterbox_is_remembered(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, evaluated and exported with bars left and right, and so used for prediction."""
    result = Detector("test").train(
        shapes, out=tmp_path, epochs=1, imgsz=(64, 96), overrides={"model.resize": "letterbox"}
    )
    detector = Detector(result.weights)
    assert detector.recipe.model.resize == "letterbox"
    assert result.metrics is not None
    assert detector.val(shapes).ap == pytest.approx(result.metrics.ap, abs=1e-9)
    # 64 × 64 pixels in the middle of 64 × 96: what a stretch would show of an image that had the bars itself.
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (found,) = detector.predict(image, conf=0.0)
    wide = np.pad(image, ((0, 0), (16, 16), (0, 0)))
    detector.recipe = override(detector.recipe, {"model.resize": "stretch"})
    (by_hand,) = detector.predict(wide, conf=0.0)
    expected = (by_hand.xyxy - [16, 0, 16, 0]).clip(0, 64)
    inside = (by_hand.xyxy[:, 2] >= 16) & (by_hand.xyxy[:, 0] <= 80)
    np.testing.assert_allclose(found.xyxy, expected[inside], atol=1e-3)
    np.testing.assert_allclose(found.confidence, by_hand.confidence[inside], atol=1e-5)
    exported: list[str] = []
    monkeypatch.setattr("rtdetrv4.export.export_model", lambda *_, resize, **__: exported.append(resize))
    detector.export()
    Detector(result.weights).export()
    assert exported == ["stretch", "letterbox"]
    convert_weights(result.weights, tmp_path / "again.safetensors")
    assert Detector(tmp_path / "again.safetensors").recipe.model.resize == "letterbox"
    with pytest.raises(WeightsError, match=r"trained with model\.resize=letterbox, which released weights"):
        convert_weights(result.weights, tmp_path / "again.pth", to="released")


def test_copies_and_pickles_predict_the_same(trained: Path) -> None:
    detector = Detector(trained / "weights.safetensors", device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (expected,) = detector.predict([image], conf=0.0)
    for copied in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        (found,) = copied.predict([image], conf=0.0)
        np.testing.assert_array_equal(found.confidence, expected.confidence)
        assert copied._graphs() is not detector._graphs()


def test_prediction_is_checked_before_it_starts(trained: Path) -> None:
    detector = Detector(trained / "weights.safetensors")
    with pytest.raises(SourceError, match=r"missing\.jpg does not exist"):
        detector.predict("missing.jpg", stream=True)
    for options, message in (
        ({"conf": {"dics": 0.5}}, 'no class "dics".*Did you mean "disc"'),
        ({"batch": 0}, "batch: got 0, expected a number of images"),
        ({"imgsz": 100}, "imgsz: got .100., expected multiples of 32"),
        ({"classes": ["moon"]}, 'no class "moon"'),
        ({"duplicates": False}, "expected drop or keep"),
        ({"slice": 16}, "slice: got 16, expected the side of a square"),
        ({"slice": 64, "overlap": 1}, "overlap: got 1, expected a share of a tile"),
    ):
        with pytest.raises(ConfigError, match=message):
            detector.predict([], stream=True, **options)


def test_more_queries_find_more_than_300(trained: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    detector = Detector(
        override(Detector(trained / "weights.safetensors").recipe, {"model.num_queries": 400}),
        trained / "weights.safetensors",
    )
    (found,) = detector.predict(image, imgsz=256, conf=0.0, duplicates="keep")
    assert len(found) == 400


def test_one_label_per_query(trained: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    detector = Detector(trained / "weights.safetensors")
    everything, found = (detector.predict(image, conf=0.0, duplicates=each)[0] for each in ("keep", "drop"))
    assert len(everything) == 100, "20 queries with 5 labels each"
    assert 0 < len(found) <= 20
    assert found.confidence[0] == everything.confidence[0]
    assert len(np.unique(found.xyxy, axis=0)) == len(found)


def test_damaged_weights_find_nothing(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = Detector(trained / "weights.safetensors")
    with torch.no_grad():
        detector.model.decoder.score_heads[-1].get_parameter("bias").fill_(torch.nan)
    (found,) = detector.predict(np.zeros((64, 64, 3), np.uint8), conf=0.0)
    assert len(found) == 0
    assert "NaN instead of scores" in caplog.text
    found.save(tmp_path / "found.jpg")


def test_same_seed_same_numbers(shapes: Path, tmp_path: Path, fresh: tuple[Detector, TrainResult]) -> None:
    runs = (fresh[1].last, Detector("test").train(shapes, epochs=1, out=tmp_path, seed=3).last)
    first, second = (torch.load(path, weights_only=True)["student"] for path in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_goes_on_with_its_own_settings(shapes: Path, tmp_path: Path) -> None:
    Detector("test").train(shapes, epochs=1, lr=2e-4, out=tmp_path)
    again = Detector("test").train(shapes, out=tmp_path, resume=True)
    assert again.weights.is_file()
    with pytest.raises(ConfigError, match=r"optimizer.lr was 0.0002, now 0.1"):
        Detector("test").train(shapes, lr=0.1, out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="trains test, not rtdetrv4-n"):
        Detector("rtdetrv4-n").train(shapes, out=tmp_path, resume=True)


def test_the_run_to_resume_is_named(
    trained: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is the latest run in the default folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "test")
    assert Detector("test").train(resume=True).out == Path("runs/test")
    for resumed in (
        Detector("test").train(resume=trained),
        Detector("test").train(shapes, resume=str(trained / "last.pt")),
        Detector(trained).train(resume=True),
        Detector(trained / "last.pt").train(resume=True),
    ):
        assert resumed.out == trained
    for wrong in ("never", tmp_path / "gone" / "last.pt"):
        with pytest.raises(ConfigError, match=r"resume: got .*, expected True, False, .auto., the folder of a run"):
            Detector("test").train(shapes, resume=wrong)
        with pytest.raises(ConfigError, match=r"resume: got .*, expected True"):
            Detector("test").pretrain(shapes, resume=wrong)
    with pytest.raises(ConfigError, match="Got two runs to resume"):
        Detector("test").train(shapes, resume=trained, out=tmp_path)


def test_a_second_run_is_given_nothing_of_the_first(shapes: Path, tmp_path: Path) -> None:
    detector = Detector("test")
    settings = {"data.fraction": 0.5, "optimizer.weight_decay": 0.5, "model.num_queries": 12}
    detector.train(shapes, epochs=1, lr=1e-5, out=tmp_path / "one", teacher=small_teacher(), overrides=settings)
    first = detector.recipe
    result = detector.train(shapes, epochs=2, out=tmp_path / "two")
    assert (first.data.fraction, first.optimizer.weight_decay, first.distillation.teacher) == (0.5, 0.5, "tiny")
    second, usual = load_recipe(result.out / "recipe.yaml"), load_recipe("test")
    assert (second.data.fraction, second.distillation.teacher) == (1, usual.distillation.teacher)
    assert second.optimizer == usual.optimizer
    assert second.model == first.model
    assert second == detector.recipe
    # Also of a run that is looked at again, and where there was nothing to resume.
    detector.train(resume=tmp_path / "one")
    detector.train(shapes, epochs=1, out=tmp_path / "three", resume="auto")
    third = load_recipe(tmp_path / "three" / "recipe.yaml")
    assert (third.data.fraction, third.optimizer) == (1, usual.optimizer)


def test_a_run_with_a_teacher_of_ones_own_resumes_with_it_only(shapes: Path, tmp_path: Path) -> None:
    """Even if it is called like a network of timm's, which would teach something else without a word."""

    class Stop(Observer):
        def epoch_end(self, *args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

    network = torch.nn.Conv2d(3, 6, 32, 32)
    network.__name__ = "vit_tiny_patch16_224"  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        Detector("test").train(shapes, epochs=2, teacher=network, out=tmp_path, callbacks=[Stop()])
    with pytest.raises(
        ConfigError, match=r'given as an object, "vit_tiny_patch16_224".*train\(resume=True, teacher=…\)'
    ):
        Detector("test").train(shapes, out=tmp_path, resume=True)
    resumed = Detector("test").train(shapes, out=tmp_path, resume=True, teacher=network)
    assert resumed.weights.is_file()


def test_fine_tuning_starts_from_the_weights(trained: Path, shapes: Path, tmp_path: Path) -> None:
    detector = Detector(trained / "weights.safetensors")
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    result = detector.train(shapes, epochs=1, lr=1e-12, out=tmp_path)
    after = Detector(result.weights).model.state_dict()
    for name, parameter in detector.model.named_parameters():
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6, msg=name)
        assert parameter.shape == before[name].shape
    # What the weights can do is measured before the first step, if they know the classes.
    known = [record for record in read_log(trained / "log.jsonl") if record.get("is_best")][-1]["metrics"]
    assert read_log(tmp_path / "log.jsonl")[0]["start_metrics"]["ap"] == pytest.approx(known["ap"], abs=1e-3)
    assert read_log(trained / "log.jsonl")[0]["start_metrics"] == {}


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The runs that were about to begin; each ends before its first step."""

    def run(trainer: Trainer, resume: Path | None = None) -> None:
        made.append(trainer)
        raise KeyboardInterrupt

    made: list[Trainer] = []
    monkeypatch.setattr(Trainer, "run", run)
    return made


def test_what_is_watched_depends_on_the_start(
    trained: Path, shapes: Path, tmp_path: Path, trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetrv4.assembly.training.QUICK_IMAGES", 3)
    known, other = trained / "weights.safetensors", shutil.copytree(shapes, tmp_path / "other")
    for file in other.rglob("*.json"):  # with classes that the weights do not know
        file.write_text(re.sub(r'"name": "(\w+)"', r'"name": "new \1"', file.read_text()))
    for weights, data, epochs, is_evaluated, is_watched in (
        (known, shapes, 5, True, True),  # 4 images, a tenth of 5 epochs of 8
        (known, shapes, 4, False, False),  # it may be trained already, and nobody knows
        (known, other, 5, False, True),
        (None, shapes, 50, False, True),
    ):
        with pytest.raises(KeyboardInterrupt):
            Detector("test", weights).train(data, epochs=epochs, out=tmp_path / "run", tracker="none")
        assert trainers[-1].evaluate_start == is_evaluated
        assert any(isinstance(observer, LossWatch) for observer in trainers[-1].observers) == is_watched
    assert [trainer.patience for trainer in trainers] == [10, 10, 10, 15]


def test_rare_classes_can_be_drawn_more_often(shapes: Path, tmp_path: Path, trainers: list[Trainer]) -> None:
    for sampling in ("uniform", "balanced"):
        with pytest.raises(KeyboardInterrupt):
            Detector("test").train(shapes, out=tmp_path, tracker="none", overrides={"data.sampling": sampling})
    uniform, balanced = (list(trainer.data.loader.sampler) for trainer in trainers)
    assert sorted(uniform) == list(range(8))
    assert sorted(balanced) != sorted(uniform)
    assert len(balanced) == 8


@pytest.mark.usefixtures("trainers")
def test_few_steps_are_told_where_nothing_was_learned_before(
    trained: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for start, epochs, is_told in ((trained / "weights.safetensors", 1, False), ("test", 3, True)):
        with pytest.raises(KeyboardInterrupt):
            Detector(start).train(shapes, out=tmp_path / "run", epochs=epochs, batch=8)
        assert ("optimizer steps are few" in caplog.text) == is_told
    assert "3 optimizer steps are few" in caplog.text
    assert "batch=4 makes 6 from the same images." in caplog.text


def test_a_batch_is_cut_into_parts_that_fit_and_the_run_remembers(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A third of it is used. Of that, the model takes 5.4 MB for the optimizer, and so leaves 15 MB for images.
    monkeypatch.setattr("rtdetrv4.assembly.training.free_memory", lambda *_: 61 * 10**6)
    monkeypatch.setattr("rtdetrv4.assembly.training.bytes_per_image", lambda *_: 6 * 10**6)
    monkeypatch.setattr("rtdetrv4.training.profile.FIRST_STEPS", 1)
    monkeypatch.setattr("rtdetrv4.training.profile.RECORDED_STEPS", 1)
    detector = Detector("test")
    settings = {"run.profile": True, "distillation.mode": "auto", "distillation.every": 2}
    detector.train(shapes, out=tmp_path, epochs=4, batch="auto", teacher=small_teacher(), overrides=settings)
    assert (detector.recipe.schedule.batch, detector.recipe.run.accumulate) == (4, 2)
    assert load_recipe(tmp_path / "recipe.yaml").run == detector.recipe.run
    epochs = [r for r in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if r["type"] == "epoch"]
    assert epochs[0]["modulation"]["reason"] == "probe"
    assert epochs[2]["modulation"]["band"] is not None
    assert (tmp_path / "profile" / "table.txt").is_file()


def test_callbacks_are_told_what_happens(shapes: Path, tmp_path: Path) -> None:
    class Watch(Observer):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def step_end(self, report: StepReport) -> None:
            self.told.append(report.step)

        def epoch_end(self, report: EpochReport) -> None:
            self.told.append(report.metrics["ap"])

    watch = Watch()
    result = Detector("test").train(shapes, out=tmp_path, epochs=1, tracker="none", callbacks=watch)
    assert result.metrics is not None
    assert watch.told == [1, 2, pytest.approx(result.metrics.ap)]
    assert not (tmp_path / "tensorboard").exists()
    for wrong in (Watch, print):
        with pytest.raises(ConfigError, match=r"callbacks: got .*, expected an object with run_start, step_end"):
            Detector("test").train(shapes, out=tmp_path, callbacks=[wrong])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"callbacks: got .*print"):
        Detector("test").pretrain(shapes, out=tmp_path, callbacks=print)  # type: ignore[arg-type]


def test_settings_may_be_what_others_take(shapes: Path, tmp_path: Path) -> None:
    result = Detector("test").train(
        shapes,
        epochs=np.int64(1),  # type: ignore[arg-type]
        cache=True,
        amp=False,
        callbacks=None,
        out=tmp_path / "run",
        overrides={"data.unlabeled": [shapes], "pseudo_labels.weight": np.float32(1)},
    )
    recipe = load_recipe(result.out / "recipe.yaml")
    assert (recipe.schedule.epochs, recipe.data.cache, recipe.run.amp) == (1, "ram", "off")
    assert recipe.data.unlabeled == (str(shapes),)
    with pytest.raises(ConfigError, match=r"overrides: got 'epochs=3', expected a dict such as"):
        Detector("test").train(shapes, out=tmp_path / "other", overrides="epochs=3")  # type: ignore[arg-type]


def test_training_takes_any_network_as_teacher(shapes: Path, tmp_path: Path) -> None:
    result = Detector("test").train(shapes, epochs=1, teacher=torch.nn.Conv2d(3, 6, 32, 32), out=tmp_path)
    assert read_metadata(result.weights).facts["teacher"] == {"name": "Conv2d", "license": "unknown"}
    assert load_recipe(tmp_path / "recipe.yaml").distillation.teacher == "Conv2d"


def test_it_says_what_it_is() -> None:
    assert repr(Detector("test", device="cpu")) == "Detector(test, 64×64 pixels, classes not loaded yet, on cpu)"


def test_a_tracker_is_refused_before_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"wandbb", expected .* Did you mean "wandb"'):
        Detector("test").train(tmp_path / "nothing", out=tmp_path, tracker="wandbb")
    with pytest.raises(ConfigError, match=r'"wandbb", expected .* Did you mean "wandb"'):
        Detector("test").pretrain(
            tmp_path / "nothing", teacher="dinov2-s", out=tmp_path, overrides={"run.tracker": "wandbb"}
        )
    assert not list(tmp_path.iterdir())


def test_a_device_without_memory_is_named_with_a_way_out(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("rtdetrv4.training.Trainer.run", full)
    with pytest.raises(ConfigError, match=r"out of memory with 4 images.*batch=auto"):
        Detector("test").train(shapes, out=tmp_path, batch=4)


def test_a_fresh_model_can_run_but_not_predict() -> None:
    detector = Detector("test")
    output = detector.model.eval()(torch.rand(1, 3, 64, 64))
    assert output.logits.shape == (1, 20, 80)
    for use in (detector.predict, detector.val, lambda _: detector.export(), lambda _: detector.names):
        with pytest.raises(WeightsError, match="fresh, untrained heads"):
            use(np.zeros((64, 64, 3), np.uint8))


def test_an_export_is_measured_on_data_and_reported(trained: Path, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    detector = Detector(run / "weights.safetensors", device="cpu")
    with pytest.raises(ConfigError, match="classes: got none"):
        detector.export("torchscript", classes=[])
    path = detector.export("torchscript", data=shapes, batch=2, classes=[1, 0])
    assert path == run / "weights.torchscript"
    accuracy = ExportReport.read(report_path(path)).accuracy
    assert accuracy is not None
    per_class = detector.val(shapes).per_class
    assert accuracy.torch_ap == pytest.approx(np.mean([per_class[name] for name in detector.names[:2]]), abs=1e-4)
    assert accuracy.ap == pytest.approx(accuracy.torch_ap, abs=1e-3)
    metrics = Detector(run / "weights.safetensors", device="cpu").val(shapes)
    expected = np.mean([metrics.per_class[name] for name in list(metrics.per_class)[:2]])
    assert accuracy.torch_ap == pytest.approx(expected, abs=1e-4)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Exported files" in page
    assert "weights.torchscript" in page
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert [each["file"] for each in content["exports"]] == ["weights.torchscript"]


def test_mistakes(trained: Path, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"rtdetrv4-s"'):
        Detector("rtdetr4-s")
    with pytest.raises(WeightsError, match="There is no file"):
        Detector(weights=tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="holds test, not rtdetrv4-s"):
        Detector("rtdetrv4-s", weights=trained / "weights.safetensors")
    with pytest.raises(ConfigError, match="weights twice"):
        Detector("a.pth", weights="b.pth")
    with pytest.raises(ConfigError, match="no data"):
        Detector("test").train()
    with pytest.raises(ConfigError, match="no run to resume"):
        Detector("test").train(shapes, out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="multiples of 32"):
        Detector("test").train(shapes, out=tmp_path, imgsz=100)
    with pytest.raises(ConfigError, match=r"distillation\.mode: got None"):
        Detector("test").train(shapes, out=tmp_path, overrides={"distillation.mode": None})
    with pytest.raises(ConfigError, match="weight_decay"):
        Detector("test").train(shapes, out=tmp_path, overrides={"optimizer.weight_deca": 1})
    with pytest.raises(DatasetError, match="no test part"):
        Detector(trained / "weights.safetensors").val(shapes, split="test")
    with pytest.raises(ConfigError, match='format: got "tflite", expected onnx'):
        Detector(trained / "weights.safetensors").export("tflite")
