"""Pretraining on images without labels: what it trains, what it leaves alone, and what its weights are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator

from rtdetrv4 import Detector
from rtdetrv4.assembly.fitting import Fitting
from rtdetrv4.assembly.start import pretrained_start
from rtdetrv4.cli import main
from rtdetrv4.config import load_recipe
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.training.checkpoint import load_checkpoint
from rtdetrv4.training.observers import Observer, read_log
from rtdetrv4.weights import Checkpoint, read_checkpoint
from small_training import assert_same, make_teacher

SMALL = {"imgsz": 64, "batch": 4, "workers": 0, "tracker": "none", "device": "cpu", "amp": "off"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), num_train=8, num_val=3, image_size=64)


def pretrain(data, out: Path, **options):
    detector = Detector("test", weights="none", device="cpu")
    torch.manual_seed(0)  # of the teacher's bias
    result = detector.pretrain(data, teacher=make_teacher(), out=out, **{**SMALL, "epochs": 3, **options})
    return detector, result


@pytest.fixture(scope="module")
def complete(data, tmp_path_factory):
    return pretrain(data, tmp_path_factory.mktemp("run"))


def test_only_what_computes_f5_is_trained_and_saved(complete):
    _, result = complete
    tensors = safetensors.torch.load_file(result.weights)
    places = {name.partition(".")[0] for name in tensors}
    assert places == {"backbone", "hybrid_encoder"}
    assert {name.split(".")[1] for name in tensors if name.startswith("hybrid_encoder")} == {"projections", "aifi"}
    metadata = read_checkpoint(result.weights, takes_pretrained=True).metadata
    assert metadata.is_pretrained
    assert not metadata.trained
    assert metadata.facts["teacher"]["name"] == "patches"
    assert metadata.facts["pretrained"]["num_images"] == 8  # the validation images stay unseen
    losses = [entry["losses"]["distill"] for entry in read_log(result.out / "log.jsonl") if entry["type"] == "epoch"]
    assert losses[-1] < losses[0]
    assert result.loss == pytest.approx(losses[-1])
    assert not result.problems


def test_the_folder_tells_what_the_run_was(complete):
    _, result = complete
    record = json.loads((result.out / "run.json").read_text())
    assert record["kind"] == "pretraining"
    assert record["data"]["train"]["images"] == 8
    assert {"report.html", "curves.png", "train_batch.jpg", "recipe.yaml"} <= {
        path.name for path in result.out.iterdir()
    }
    page = (result.out / "report.html").read_text()
    assert "pretraining without labels" in page
    assert "rtdetrv4 pretrain" in page


def test_training_takes_backbone_and_encoder(complete, data, tmp_path):
    _, result = complete
    saved = safetensors.torch.load_file(result.weights)
    seen = {}

    class Look(Observer):
        def run_start(self, info):
            seen.update({name: value.clone() for name, value in network.state_dict().items()})

    detector = Detector(result.weights, device="cpu")
    original = detector._network_for

    def network_for(*args):
        nonlocal network
        network, report = original(*args)
        return network, report

    network = None
    detector._network_for = network_for
    options = {**SMALL, "epochs": 1, "out": tmp_path, "teacher": "none"}
    trained = detector.train(data, callbacks=[Look()], **options)
    for name, value in saved.items():
        assert torch.equal(seen[name], value), name
    record = json.loads((trained.out / "run.json").read_text())
    assert record["start"]["kind"] == "pretrained"
    assert record["start"]["origin"] == "none"
    assert detector.predict(np.zeros((64, 64, 3), np.uint8))  # it has become a detector


def test_the_detector_itself_can_be_trained_on(data, tmp_path):
    detector, _ = pretrain(data, tmp_path / "pre", epochs=1)
    detector.train(data, **SMALL, epochs=1, out=tmp_path / "run", teacher="none")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["start"]["kind"] == "pretrained"


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        ({"kind": "none"}, "pretrained"),
        ({"kind": "imagenet"}, "imagenet"),
        ({"kind": "coco"}, "imagenet"),
        ({"kind": "pretrained", "origin": "none"}, "pretrained"),
        ({"kind": "pretrained", "origin": "imagenet"}, "imagenet"),
        (None, "imagenet"),
    ],
)
def test_learning_rates_follow_what_the_pretraining_started_from(data, complete, before, kind):
    metadata, tensors = read_checkpoint(complete[1].weights, takes_pretrained=True)
    metadata = metadata._replace(facts={**metadata.facts, "start": before})
    start = pretrained_start(Checkpoint(metadata, tensors))
    fitting = Fitting.gather(
        load_recipe("test"), (), read_splits(data), Accelerator(cpu=True), start=start, budget=None
    )
    assert fitting.sources.start == kind


@pytest.mark.parametrize("work", ["predict", "val", "export"])
def test_it_detects_nothing_yet(complete, data, work):
    _, result = complete
    arguments = {"predict": [np.zeros((64, 64, 3), np.uint8)], "val": [data], "export": ["onnx"]}[work]
    for weights in (result.weights, result.last):
        detector = Detector(weights, device="cpu")
        with pytest.raises(WeightsError, match=r"pretrained on images without labels.*rtdetrv4 train"):
            getattr(detector, work)(*arguments)


def test_a_killed_run_resumes_bit_for_bit(complete, data, tmp_path):
    class Cut(Observer):
        def step_end(self, report):
            if report.step == 4:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        pretrain(data, tmp_path, callbacks=[Cut()])
    assert load_checkpoint(tmp_path / "last.pt")["position"]["epoch"] == 1
    detector = Detector("test", weights="none", device="cpu")
    torch.manual_seed(0)
    result = detector.pretrain(teacher=make_teacher(), out=tmp_path, resume=True)
    _, other = complete
    state, expected = (load_checkpoint(each.last) for each in (result, other))
    for name in ("student", "ema", "optimizer", "position"):
        assert_same(state[name], expected[name], name)
    assert_same(*(safetensors.torch.load_file(each.weights) for each in (result, other)))


def test_each_run_is_resumed_by_its_own_command(complete, data, tmp_path, capsys):
    _, result = complete
    assert main(["train", "--resume", "--out", str(result.out)]) == 2
    assert "one of `rtdetrv4 pretrain`" in capsys.readouterr().err
    detector = Detector("test", weights="none", device="cpu")
    detector.train(data, **SMALL, epochs=1, out=tmp_path, teacher="none")
    with pytest.raises(ConfigError, match="one of `rtdetrv4 train`"):
        detector.pretrain(out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain"], "Missing option --data"),
        (["pretrain", "--data", "nowhere", "-m", "test", "--weights", "none"], "nowhere does not exist"),
        (["pretrain", "--data", "{data}", "-m", "test", "--weights", "none", "--teacher", "none"], "needs a teacher"),
    ],
)
def test_mistakes_are_one_line(arguments, message, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(data=data) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "runs").exists()
