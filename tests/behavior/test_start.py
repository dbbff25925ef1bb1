"""Trained weights by name, all the way: a hub on this machine, the real file formats, predicting and training."""

from __future__ import annotations

import copy
import json
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from PIL import Image

from local_hub import LocalHub, Served, use_hub
from rtdetrv4 import ConfigError, Detector, SourceError, WeightsError
from rtdetrv4.appraisal import Appraisal
from rtdetrv4.assembly import create_model, start, training
from rtdetrv4.assembly.start import Start, choose_start
from rtdetrv4.cli import main
from rtdetrv4.config import load_recipe, override
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.models import DetectionModel
from rtdetrv4.ops import hub as client
from rtdetrv4.weights import hub as weights_hub
from rtdetrv4.weights import read_metadata, save_transformers, save_weights, to_released
from rtdetrv4.weights.catalog import CLASS_ROWS, COCO, HUB_FILES, HubFile

IMAGENET = "timm/hgnetv2_b0.ssld_stage2_ft_in1k/model.safetensors"
DFINE_N = "ustc-community/dfine-nano-coco"
SHORT = {"epochs": 1, "batch": 2, "imgsz": 64, "workers": 0, "teacher": "none", "tracker": "none", "device": "cpu"}


@pytest.fixture(autouse=True)
def _catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = {"rtdetrv4-n": {"coco": (HubFile("some/one", "n/weights.safetensors", ap=1.5),)}}
    for module in (weights_hub, start):
        monkeypatch.setattr(module, "HUB_FILES", {**HUB_FILES, **own})
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("photo.jpg")


@pytest.fixture
def offline(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a hub that nobody serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    use_hub(closed, Path(constants.HF_HUB_CACHE), monkeypatch)
    return closed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes, one of which COCO has too."""
    folder = write_shapes(tmp_path / "data", num_train=2, num_val=1, image_size=64, num_classes=2)
    for file in folder.glob("*/_annotations.coco.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for category, name in zip(content["categories"], ("forklift", "Wine-Glass"), strict=True):
            category["name"] = name
        file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def _ours(network: DetectionModel, folder: Path) -> dict[str, str]:
    classes = {key: list(value) for key, value in COCO._asdict().items()}
    save_weights(network.state_dict(), folder / "weights.safetensors", {"model": "rtdetrv4-n", **classes})
    return {"weights.safetensors": "some/one/n/weights.safetensors"}


def _wrapped(network: DetectionModel, folder: Path) -> dict[str, str]:
    beside = {"nc": 80, "model_family": "deim", "size": "n", "names": dict(enumerate(COCO.names))}
    torch.save({"model": to_released(network), **beside}, folder / "w.pt")
    return {"w.pt": "LibreYOLO/LibreDEIMn/LibreDEIMn.pt"}


def _of_transformers(repository: str) -> Callable[[DetectionModel, Path], dict[str, str]]:
    def save(network: DetectionModel, folder: Path) -> dict[str, str]:
        save_transformers(network, folder, COCO.names, (640, 640))
        return {name: f"{repository}/{name}" for name in ("model.safetensors", "config.json")}

    return save


FORMATS = {
    "rtdetrv4-n": _ours,
    "deim-n": _wrapped,
    "dfine-n": _of_transformers(DFINE_N),
    "rtdetrv2-r18": _of_transformers("PekingU/rtdetr_v2_r18vd"),
}


def _serve(hub: LocalHub, name: str) -> dict[str, torch.Tensor]:
    """Put random weights on the hub as their owners do; return them by our names."""
    network = create_model(name)
    folder = Path("written", name)
    folder.mkdir(parents=True)
    for file, place in FORMATS[name](network, folder).items():
        hub.files[place] = Served((folder / file).read_bytes())
    return network.state_dict()


def _assert_loaded(detector: Detector, served: dict[str, torch.Tensor]) -> None:
    found = detector.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in served.items() if not name.endswith("tracked"))


@pytest.mark.parametrize("name", FORMATS)
def test_predict_and_train_by_name(
    name: str,
    hub: LocalHub,
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = _serve(hub, name)
    detector = Detector(name, device="cpu")
    assert not hub.requests
    [found] = detector.predict(np.zeros((48, 64, 3), dtype=np.uint8), conf=0.0, imgsz=64, duplicates="keep")
    assert len(found) == 300
    assert detector.names == COCO.names
    assert detector.recipe.model.image_size == (640, 640)
    _assert_loaded(detector, served)

    hub.requests.clear()
    networks: list[DetectionModel] = []
    build = training.build_trainer

    def remember(recipe: Any, splits: Any, network: DetectionModel, **given: Any) -> Any:
        networks.append(copy.deepcopy(network))
        return build(recipe, splits, network, **given)

    monkeypatch.setattr(training, "build_trainer", remember)
    monkeypatch.setattr(Appraisal, "evaluate", lambda *_, **__: None)  # which takes longer than the one step
    monkeypatch.setattr(Appraisal, "draw_predictions", lambda *_: None)
    with caplog.at_level(logging.INFO):
        trained = Detector(name).train(data, out=tmp_path / "run", **SHORT)
    assert not hub.requests  # everything was in the cache, and no ImageNet backbone was wanted
    file, *_ = hub.files
    [line] = [record.message for record in caplog.records if record.message.startswith("Starting from")]
    assert line.startswith(f"Starting from COCO weights of {name} ({file}; AP ")
    assert ", with the rows of 1 of 2 classes: " in line
    assert line.endswith("classes moved by name: Wine-Glass; newly initialized: forklift.")

    [network] = networks
    wine_glass = COCO.names.index("wine glass")
    for key, tensor in network.state_dict().items():
        if CLASS_ROWS.fullmatch(key):
            assert torch.equal(tensor[1], served[key][wine_glass]), key
        elif not key.endswith("tracked"):
            assert torch.equal(tensor, served[key]), key
    record = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["start"]
    assert record == {
        "kind": "coco",
        "source": file,
        "sha256": client.file_sha256(Path("written", name, "w.pt" if name == "deim-n" else Path(file).name)),
    }
    assert read_metadata(trained.weights).facts["start"] == record


def test_what_was_loaded_by_name_is_what_training_starts_from(hub: LocalHub) -> None:
    _serve(hub, "dfine-n")
    detector = Detector("dfine-n", device="cpu")
    assert detector.names == COCO.names
    begun = detector._start_of(detector.recipe)
    assert (begun.kind, begun.source) == ("coco", f"{DFINE_N}/model.safetensors")
    assert isinstance(begun.weights, str)  # not one more copy of the tensors


def test_the_command_line(
    hub: LocalHub, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _serve(hub, "dfine-n")
    photo = str(next((data / "valid").glob("*.jpg")))
    monkeypatch.setattr("rtdetrv4.config.DEFAULT_MODEL", "dfine-n")
    assert main(["predict", photo, "--imgsz", "64", "--out", "found"]) == 0
    assert Path("found/predictions.jsonl").is_file()

    exported: list[Any] = []
    monkeypatch.setattr(
        "rtdetrv4.export.export_model", lambda model, paths, **given: exported.append((paths, given["classes"]))
    )
    assert main(["export", "--model", "dfine-n"]) == 0
    assert exported == [({"onnx": Path("dfine-n.onnx")}, COCO)]  # and not in the cache

    begun: list[Start] = []
    monkeypatch.setattr(Detector, "_network_for", lambda self, recipe, classes, start: _stop(begun, start))
    settings = ["--set", "schedule.batch=2", "--teacher", "none"]
    for weights, kind in (("coco", "coco"), ("none", "none"), (None, "coco")):
        args = ["train", "--data", str(data), "--model", "dfine-n", *settings]
        with pytest.raises(_StoppedError):
            main(args if weights is None else [*args, "--weights", weights])
        assert begun[-1].kind == kind
    capsys.readouterr()
    assert main(["train", "--data", str(data), "--model", "dfine-n", "--weights", "imagenet", *settings]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: The weights of hgnetv2_b0 are not in the cache and cannot be fetched: ")
    assert main(["val", "--data", str(data), "--model", "dfine-n", "--weights", "obj365"]) == 2
    assert "no weights of dfine-n trained on obj365 are on the hub, only on coco" in capsys.readouterr().err


class _StoppedError(Exception):
    pass


def _stop(begun: list[Start], start: Start) -> None:
    begun.append(start)
    raise _StoppedError


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (None, "dfine-nano-coco has no file model.safetensors"),
        (Served(b"", status=403, error_code="GatedRepo"), r"dfine-nano-coco is refused \(403\)"),
        (Served(b"damaged", stated_hash="0" * 64), "arrived damaged and was removed from the cache"),
        (Served(b"cut" * 99, cuts=[10, 0, 0, 0, 0, 0, 0], status_after_cut=503), "dfine-nano-coco"),
        (Served(b"<html>no weights</html>"), "is damaged.*: it is a web page"),
    ],
)
def test_what_goes_wrong_is_one_error(hub: LocalHub, served: Served | None, message: str) -> None:
    if served is not None:
        hub.files[f"{DFINE_N}/model.safetensors"] = served
    before = time.monotonic()
    with pytest.raises(WeightsError, match=message) as caught:
        Detector("dfine-n", device="cpu").predict("photo.jpg")
    assert time.monotonic() - before < 5
    assert "\n" not in str(caught.value)


def test_offline_names_the_file_and_its_place(
    offline: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = time.monotonic()
    assert main(["predict", "photo.jpg", "--model", "dfine-n", "--out", "found"]) == 2
    assert time.monotonic() - before < 5
    [line] = capsys.readouterr().err.splitlines()
    assert line.count(f"{offline} does not answer") == 1
    assert f"Download {offline}/{DFINE_N}/resolve/main/model.safetensors (15.3 MB) and the config.json" in line
    assert line.endswith(f"copy models--ustc-community--dfine-nano-coco from the cache of that machine into "
                         f"{constants.HF_HUB_CACHE}.")  # fmt: skip
    assert not caplog.records
    assert not Path("found").exists()


def test_a_photo_that_is_not_there_is_missed_before_weights_are_fetched(
    hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.jpg").touch()
    for photo, message in (("missing.jpg", "missing.jpg does not exist"), ("empty.jpg", "empty.jpg is damaged")):
        with pytest.raises(SourceError, match=message):
            Detector("dfine-n", device="cpu").predict(photo)
        assert main(["predict", photo, "--model", "dfine-n"]) == 2
        assert message in capsys.readouterr().err
    assert hub.requests == []


def test_a_hub_that_does_not_answer_in_time_is_not_asked_for_the_next_file(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 0.2)
    hub.silent.set()
    begun = choose_start(load_recipe("dfine-n"))
    assert begun.source == "efficientnet_lite0"
    assert len(hub.requests) == 1
    assert begun.why_not_better.count("does not answer") == 1
    hub.silent.clear()
    monkeypatch.setattr(client, "_silent_until", {hub.endpoint: 0.0})  # as if time had passed
    hub.files[IMAGENET] = Served(b"tensors")
    assert choose_start(load_recipe("dfine-n")).kind == "imagenet"


@pytest.mark.parametrize("wanted", ["coco", "imagenet"])
def test_what_was_asked_for_by_name_is_not_replaced(wanted: Any, offline: str, data: Path) -> None:
    before = time.monotonic()
    with pytest.raises(WeightsError, match=f"cannot? be fetched: {offline} does not answer|none can be fetched"):
        Detector("dfine-n", weights=wanted).train(data, **SHORT)
    assert time.monotonic() - before < 5
    assert not Path("runs").exists()


def test_the_next_best_is_taken_and_said(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("dfine-n")
    hub.files[IMAGENET] = Served(b"tensors")
    begun = choose_start(recipe)
    assert (begun.kind, begun.source, begun.weights, begun.settings) == ("imagenet", "hgnetv2_b0", None, {})
    assert begun.line(None) == (
        "Starting from the backbone hgnetv2_b0 with ImageNet weights, because COCO weights of dfine-n cannot be had "
        f"({hub.endpoint}/{DFINE_N} has no file model.safetensors). Download "
        "https://github.com/Peterande/storage/releases/download/dfinev1.0/dfine_n_coco.pth and give the path of that "
        "file as weights."
    )
    assert begun.record()["sha256"] == client.file_sha256(Path(str(begun.file)))

    del hub.files[IMAGENET]
    use_hub("http://127.0.0.1:1", Path(constants.HF_HUB_CACHE), monkeypatch)
    assert choose_start(recipe).source == "hgnetv2_b0"  # it is in the cache
    use_hub("http://127.0.0.1:1", Path("empty"), monkeypatch)
    begun = choose_start(recipe)
    assert (begun.source, begun.settings) == ("efficientnet_lite0", {"model.backbone": "efficientnet_lite0"})
    assert begun.why_not_better.count("does not answer") == 1
    assert " and ImageNet weights of hgnetv2_b0 cannot be had. Download http://127.0.0.1:1/" in begun.why_not_better

    monkeypatch.setattr(start, "has_pip_weights", lambda name: False)
    begun = choose_start(recipe)
    assert (begun.kind, begun.text, begun.record()) == (
        "none",
        "random weights",
        {"kind": "none", "source": None, "sha256": None},
    )
    assert begun.settings == {"model.pretrained_backbone": False}
    assert "cannot be had" in begun.line(None)


def test_a_recipe_with_a_backbone_of_its_own_is_followed(offline: str) -> None:
    recipe = load_recipe("dfine-n")
    scratch = choose_start(override(recipe, {"model.pretrained_backbone": False}))
    assert scratch.line(None) == "Starting from random weights."
    from_file = choose_start(override(recipe, {"model.pretrained_backbone": "b0.pth"}))
    assert (from_file.kind, from_file.source) == ("imagenet", "b0.pth")
    demo = choose_start(load_recipe("demo"))
    assert demo.line(None) == "Starting from the backbone efficientnet_lite0 with ImageNet weights from pip."
    assert choose_start(load_recipe("test")).kind == "none"
    other = override(recipe, {"model.backbone": "test_resnet"})
    assert "ImageNet weights of test_resnet cannot be had" in choose_start(other).line(None)
    with pytest.raises(WeightsError, match="COCO weights of dfine-n are for its own backbone, hgnetv2_b0, not for"):
        choose_start(other, "coco")
    with pytest.raises(ConfigError, match="pretrained_backbone is false"):
        choose_start(override(recipe, {"model.pretrained_backbone": False}), "imagenet")
    with pytest.raises(ConfigError, match=r'got "none", but model\.pretrained_backbone is "b0\.pth"'):
        choose_start(override(recipe, {"model.pretrained_backbone": "b0.pth"}), "none")
    with pytest.raises(ConfigError, match="does not fit"):
        choose_start(override(recipe, {"model.backbone": "vit_tiny_patch16_224"}))


def test_weights_of_another_model_are_not_taken(hub: LocalHub) -> None:
    save_weights(create_model("deim-n").state_dict(), Path("w.safetensors"), {"model": "deim-n"})
    hub.files["some/one/n/weights.safetensors"] = Served(Path("w.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="holds deim-n, not rtdetrv4-n"):
        choose_start(load_recipe("rtdetrv4-n"), "coco")


def test_the_network_without_weights_to_fetch(offline: str, caplog: pytest.LogCaptureFixture) -> None:
    """`model` must always be there; what was asked for by name must be, too."""
    detector = Detector("dfine-n", device="cpu")
    assert detector.model.query_selection.score_head.out_features == 80
    assert "This dfine-n is untrained: There are no coco weights" in caplog.text
    with pytest.raises(WeightsError, match="fresh, untrained heads"):
        detector.predict("photo.jpg")
    with pytest.raises(WeightsError, match="There are no coco weights"):
        _ = Detector("dfine-n", weights="coco").model
    for name in ("none", "imagenet"):
        with pytest.raises(WeightsError, match="fresh, untrained heads"):
            Detector("dfine-n", weights=name).predict("photo.jpg")


def test_ranks_that_would_start_from_different_weights_stop(
    offline: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtdetrv4.assembly.arrangement.texts_of_ranks", lambda text: [text, "COCO weights"])
    with pytest.raises(WeightsError, match=r"cannot all start from the same: COCO weights / random weights\. Ask"):
        Detector("test").train(data, **SHORT)


def test_a_run_that_goes_on_fetches_nothing_and_keeps_its_record(hub: LocalHub, data: Path, tmp_path: Path) -> None:
    served = safetensors.torch.save(timm.create_model("hgnetv2_b0").state_dict())
    hub.files[IMAGENET] = Served(served)
    backbone = {"model.backbone": "hgnetv2_b0", "model.pretrained_backbone": True}
    settings = {**SHORT, "out": tmp_path / "run", "overrides": backbone}
    Detector("test").train(data, **settings)
    record = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["start"]
    assert (record["kind"], record["source"]) == ("imagenet", "hgnetv2_b0")
    hub.requests.clear()
    resumed = Detector("test").train(data, resume=True, **settings)
    assert not hub.requests
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["start"] == record
    tuned = Detector(resumed.weights)
    assert tuned.metadata is not None
    assert tuned.metadata.facts["start"] == record
    assert tuned._start_of(tuned.recipe).record() == {
        "kind": "file",
        "source": str(resumed.weights),
        "sha256": client.file_sha256(resumed.weights),
    }
