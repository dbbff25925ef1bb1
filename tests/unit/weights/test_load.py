"""Weights into models: what is moved, what stays, what is refused."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdetrv4.assembly import create_model
from rtdetrv4.distillation import DistillationStudent, Injector
from rtdetrv4.errors import WeightsError
from rtdetrv4.models import DetectionModel
from rtdetrv4.training.checkpoint import save_checkpoint
from rtdetrv4.training.ema import ModelEma
from rtdetrv4.weights import (
    COCO,
    LoadReport,
    load_weights,
    read_metadata,
    save_transformers,
    save_weights,
    to_released,
    to_transformers,
)

ANIMALS = ("cat", "dog", "horse")
ROWS = ("query_selection.score_head.weight", "query_selection.score_head.bias", "decoder.score_heads.1.weight")


def model_of(num_classes: int, seed: int = 0) -> DetectionModel:
    """A model of which no two tensors are alike, class biases included."""
    torch.manual_seed(seed)
    model = create_model("test", num_classes)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return model


def write(model: DetectionModel, path: Path, names: Sequence[str], **facts: Any) -> Path:
    """weights.safetensors as a training run writes it."""
    facts = {"model": "test", "image_size": [64, 96], "trained": True} | facts
    save_weights(model.state_dict(), path, {"names": list(names), "category_ids": list(range(len(names))), **facts})
    return path


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectionModel, Path]:
    """A trained detector of three animals, and its file."""
    model = model_of(3, seed=1)
    return model, write(model, tmp_path_factory.mktemp("weights") / "weights.safetensors", ANIMALS)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], but: Sequence[str] = ()) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert sorted(different) == sorted(but)


def test_own_weights_come_back(animals: tuple[DetectionModel, Path]) -> None:
    trained, path = animals
    model = model_of(3)
    report = load_weights(model, path)
    assert_same(model.state_dict(), trained.state_dict())
    assert report == LoadReport(
        str(path), tuple(trained.state_dict()), (), (), (), (3, 3), trained=True, knows_classes=True
    )

    facts = read_metadata(path)
    assert facts.model == "test"
    assert facts.classes is not None
    assert facts.classes.names == ANIMALS
    assert facts.image_size == (64, 96)
    assert (facts.num_classes, facts.trained) == (3, True)


def test_the_same_classes_in_another_order_are_moved(animals: tuple[DetectionModel, Path]) -> None:
    trained, path = animals
    model = model_of(3)
    report = load_weights(model, path, names=("Horse", "cat", "DOG"))
    assert report.moved == ("Horse", "cat", "DOG")
    assert report.trained
    assert not report.newly_initialized
    for name in ROWS:
        assert torch.equal(model.state_dict()[name], trained.state_dict()[name][[2, 0, 1]])


def test_classes_are_moved_by_name_and_others_keep_their_rows(animals: tuple[DetectionModel, Path]) -> None:
    trained, path = animals
    names = ("zebra", "dog", "cat", "traffic_light")
    model = model_of(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, path, names=names)
    after = model.state_dict()
    for name in (*ROWS, "denoising.class_embedding.weight"):
        assert torch.equal(after[name][[1, 2]], trained.state_dict()[name][[1, 0]])
        assert torch.equal(after[name][[0, 3]], before[name][[0, 3]])
    assert torch.equal(
        after["decoder.layers.0.linear1.weight"], trained.state_dict()["decoder.layers.0.linear1.weight"]
    )
    assert report.moved == ("dog", "cat")
    assert report.newly_initialized == ("zebra", "traffic_light")
    assert "classes moved by name: dog and cat; newly initialized: zebra and traffic_light" in str(report)
    assert not report.trained
    assert report.knows_classes


def test_no_class_in_common(animals: tuple[DetectionModel, Path]) -> None:
    _, path = animals
    model = model_of(1)
    before = model.query_selection.score_head.weight.clone()
    report = load_weights(model, path, names=["scratch"])
    assert report.newly_initialized == ("scratch",)
    assert not report.trained
    assert not report.knows_classes
    assert not set(ROWS) & set(report.loaded)
    assert torch.equal(model.query_selection.score_head.weight, before)


def test_another_number_of_classes_without_names_is_new(animals: tuple[DetectionModel, Path]) -> None:
    report = load_weights(model_of(2), animals[1])
    assert report.newly_initialized == ("class 0", "class 1")
    assert not report.trained


def test_untrained_weights_say_so(tmp_path: Path) -> None:
    report = load_weights(model_of(2), write(model_of(2), tmp_path / "w.safetensors", "ab", trained=False))
    assert not report.newly_initialized
    assert not report.trained
    assert not report.knows_classes


def test_wrong_number_of_names(animals: tuple[DetectionModel, Path]) -> None:
    with pytest.raises(WeightsError, match="2 class names were given for a model of 3 classes"):
        load_weights(model_of(3), animals[1], names=("cat", "dog"))


def test_training_states_give_their_averaged_weights(tmp_path: Path) -> None:
    student = DistillationStudent(model_of(3), Injector(32, 8))
    ema = ModelEma(DistillationStudent(model_of(3, seed=5), Injector(32, 8)), 0.9, 0)
    state = {
        "student": student.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": torch.optim.AdamW(student.parameters()).state_dict(),
        "metadata": {"model": "test", "names": list(ANIMALS), "category_ids": [4, 5, 6], "image_size": [64, 64]},
    }
    save_checkpoint(state, tmp_path / "last.pt")
    model = model_of(3)
    report = load_weights(model, tmp_path / "last.pt", names=ANIMALS)
    assert_same(model.state_dict(), ema.module.detector.state_dict())
    assert report.ignored == ("injector.projector.weight", "injector.projector.bias")
    assert report.trained
    facts = read_metadata(tmp_path / "last.pt")
    assert (facts.model, facts.image_size) == ("test", (64, 64))
    assert facts.classes is not None
    assert facts.classes.category_ids == (4, 5, 6)


def released(model: DetectionModel, **changes: Tensor) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in {**to_released(model), **changes}.items()}


def test_released_checkpoints_load_as_they_are(tmp_path: Path) -> None:
    """EMA first, under DDP's prefix, with constants, a projector and an optimizer."""
    averaged, raw = model_of(80, seed=2), model_of(80, seed=3)
    path = tmp_path / "released.pth"
    torch.save(
        {
            "date": "2025-10-29T10:00:00",
            "last_epoch": 131,
            "model": released(raw),
            "ema": {"module": to_released(averaged, injector=Injector(32, 8)), "updates": 3},
            "optimizer": torch.optim.AdamW(raw.parameters()).state_dict(),
        },
        path,
    )
    model = model_of(80)
    report = load_weights(model, path)
    assert_same(model.state_dict(), averaged.state_dict())
    assert report.ignored == ("injector.projector.weight", "injector.projector.bias")
    assert report.trained
    assert read_metadata(path).classes == COCO

    torch.save({"model": released(raw), "ema": None}, path)
    load_weights(model, path)
    assert_same(model.state_dict(), raw.state_dict())

    torch.save(released(averaged), path)
    load_weights(model, path)
    assert_same(model.state_dict(), averaged.state_dict())


def test_coco_rows_start_a_detector_of_other_classes(tmp_path: Path) -> None:
    coco = model_of(80, seed=2)
    torch.save({"model": to_released(coco)}, tmp_path / "released.pth")
    model = model_of(3)
    report = load_weights(model, tmp_path / "released.pth", names=("helmet", "Person", "sports-ball"))
    assert report.moved == ("Person", "sports-ball")
    assert report.newly_initialized == ("helmet",)
    for name in ROWS:
        old = [COCO.names.index("person"), COCO.names.index("sports ball")]
        assert torch.equal(model.state_dict()[name][1:], coco.state_dict()[name][old])


def test_released_weights_of_unknown_classes_keep_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = model_of(3, seed=2)
    torch.save({"model": to_released(trained)}, tmp_path / "mine.pth")
    assert read_metadata(tmp_path / "mine.pth").classes is None
    model = model_of(3)
    with caplog.at_level(logging.WARNING):
        report = load_weights(model, tmp_path / "mine.pth", names=ANIMALS)
    assert "does not name its classes" in caplog.text
    assert_same(model.state_dict(), trained.state_dict())
    assert report.trained
    assert not report.moved


def test_what_only_training_needs_may_be_missing(tmp_path: Path) -> None:
    trained = model_of(3, seed=2)
    without = copy.deepcopy(trained)
    without.denoising = None
    path = write(without, tmp_path / "w.safetensors", ANIMALS)
    model = model_of(3)
    embedding = model.state_dict()["denoising.class_embedding.weight"].clone()
    report = load_weights(model, path)
    assert report.newly_initialized == ("denoising.class_embedding.weight",)
    assert report.trained
    assert torch.equal(model.state_dict()["denoising.class_embedding.weight"], embedding)

    report = load_weights(copy.deepcopy(without), write(trained, tmp_path / "v.safetensors", ANIMALS))
    assert report.ignored == ("denoising.class_embedding.weight",)


@pytest.mark.parametrize("names", [ANIMALS, ("a", "b", "c", "d")])
def test_another_model_is_named_and_nothing_is_changed(
    animals: tuple[DetectionModel, Path], names: tuple[str, ...]
) -> None:
    model = create_model("dfine-n", len(names))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match=r"does not fit rtdetrv4-n, deim-n or dfine-n: \d+ tensors") as error:
        load_weights(model, animals[1], names=names)
    assert "The file seems to be for test; build that model" in str(error.value)
    assert "in the file and" in str(error.value)
    assert_same(model.state_dict(), before)


def test_incomplete_weights(tmp_path: Path) -> None:
    state = to_released(model_of(80))
    del state["decoder.pre_bbox_head.layers.0.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"the file has no decoder\.pre_box_head\.layers\.0\.bias.*incomplete"):
        load_weights(model_of(80), tmp_path / "w.pth")


def test_names_and_rows_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="damaged: it names 3 classes and predicts 2"):
        load_weights(model_of(2), write(model_of(2), tmp_path / "w.safetensors", ANIMALS))


def test_damage_anywhere_is_an_error_of_ours(animals: tuple[DetectionModel, Path], tmp_path: Path) -> None:
    """Truncated files never load halfway, and never raise anything but WeightsError."""
    torch.save({"model": to_released(animals[0])}, tmp_path / "w.pth")
    draw = random.Random(0)
    for suffix, good in (("pth", tmp_path / "w.pth"), ("safetensors", animals[1])):
        content = good.read_bytes()
        bad = tmp_path / f"bad.{suffix}"
        for _ in range(5):
            bad.write_bytes(content[: draw.randrange(len(content))])
            with pytest.raises(WeightsError, match="damaged"):
                load_weights(model_of(3), bad)


def test_rows_of_objects365_start_a_detector_of_other_classes(tmp_path: Path) -> None:
    """Released heads of 366 rows: a class's row is its category id."""
    pretrained = model_of(366, seed=2)
    torch.save({"model": released(pretrained), "ema": None}, tmp_path / "obj365.pth")
    model = model_of(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, tmp_path / "obj365.pth", names=("wild bird", "forklift", "Wine-Glass", "person"))
    after = model.state_dict()
    for name in (*ROWS, "denoising.class_embedding.weight"):
        assert torch.equal(after[name][[0, 2, 3]], pretrained.state_dict()[name][[57, 36, 1]])
        assert torch.equal(after[name][1], before[name][1])
    assert report.known_rows == (3, 4)
    assert str(report) == (
        f"{tmp_path / 'obj365.pth'}: {len(before)} tensors loaded; "
        "classes moved by name: wild bird, Wine-Glass and person; newly initialized: forklift"
    )
    assert not report.trained


def test_transformers_weights_start_a_detector_of_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pretrained = create_model("dfine-n", 3)
    with torch.no_grad():
        for tensor in pretrained.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    save_transformers(pretrained, tmp_path, ANIMALS, (640, 640))
    model = create_model("dfine-n", 2)
    before = model.query_selection.score_head.weight[1].clone()
    report = load_weights(model, tmp_path, names=("Horse", "zebra"))
    assert (report.moved, report.newly_initialized) == (("Horse",), ("zebra",))
    theirs = pretrained.state_dict()
    for name, tensor in model.state_dict().items():
        is_by_class = name.startswith(("query_selection.score_head", "decoder.score_heads", "denoising"))
        assert torch.equal(tensor[0], theirs[name][2]) if is_by_class else torch.equal(tensor, theirs[name]), name
    assert torch.equal(model.query_selection.score_head.weight[1], before)
    assert not report.trained


def test_transformers_may_leave_one_of_two_names_of_a_head_out(tmp_path: Path) -> None:
    trained = create_model("dfine-n", 3)
    state = to_transformers(trained)
    for gone in ("class_embed.", "model.decoder.class_embed."):
        kept = {name: tensor for name, tensor in state.items() if not name.startswith(gone)}
        assert len(kept) == len(state) - 6
        torch.save(kept, tmp_path / "w.bin")
        model = create_model("dfine-n", 3)
        assert load_weights(model, tmp_path / "w.bin").trained
        assert_same(model.state_dict(), trained.state_dict())


def test_classes_that_differ_in_case_only_keep_their_own_rows(tmp_path: Path) -> None:
    model, path = model_of(3), tmp_path / "three.safetensors"
    bias = "query_selection.score_head.bias"
    state = model.state_dict() | {bias: torch.tensor([1.0, 2.0, 3.0])}
    save_weights(state, path, {"model": "test", "names": ["Cat", "cat", "dog"]})
    load_weights(model, path, names=("Cat", "cat", "Dog"))
    assert model.state_dict()[bias].tolist() == [1, 2, 3]
    fresh = model_of(3)
    report = load_weights(fresh, path, names=("CAT", "dog", "cat"))
    assert fresh.state_dict()[bias].tolist()[1:] == [3, 2]
    assert "CAT" in report.newly_initialized, "which of the two is meant, nobody knows"
