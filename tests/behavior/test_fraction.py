"""Training on a share of the labels."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from rtdetrv4 import ConfigError, Detector
from rtdetrv4.assembly.arrangement import read_training_data
from rtdetrv4.config import load_recipe, override
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.data.unlabeled import image_files
from small_training import make_teacher


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=3, image_size=64)


def test_a_run_uses_and_remembers_a_share(shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"data.fraction": 0.25, "data.unlabeled": [str(shapes)], "workers": 0, "tracker": "none"}
    given = {"teacher": make_teacher(), "epochs": 1, "batch": 2, "imgsz": 64, "amp": "off", "out": tmp_path}
    with caplog.at_level(logging.INFO):
        Detector("test", "none").train(shapes, overrides=settings, **given)
    assert "2 of 8 training images are used (data.fraction)" in caplog.text
    data = json.loads((tmp_path / "run.json").read_text())["data"]
    assert {name: part["images"] for name, part in data.items()} == {"train": 2, "val": 3, "unlabeled": 8}
    assert load_recipe(tmp_path / "recipe.yaml").data.fraction == 0.25
    with pytest.raises(ConfigError, match=r"data\.fraction was 0\.25, now 0\.5"):
        Detector("test", "none").train(out=tmp_path, resume=True, overrides={"data.fraction": 0.5})
    with pytest.raises(ConfigError, match=r"data\.fraction: got 0 .*, expected greater than 0"):
        Detector("test", "none").train(shapes, overrides={"data.fraction": 0})


def test_what_is_left_out_has_no_labels_but_may_be_seen(shapes: Path) -> None:
    given = {"data": shapes, "data.fraction": 0.25, "data.unlabeled": [str(shapes)]}
    splits, _ = read_training_data(override(load_recipe("test"), given))
    assert splits.train is not None
    assert splits.val is not None
    assert splits.unlabeled is not None
    labeled, seen = image_files(splits.train), image_files(splits.unlabeled)
    assert (len(labeled), len(seen)) == (2, 8)
    assert labeled < seen
    assert not seen & image_files(splits.val)


def test_images_are_the_same_for_every_seed_unless_asked_for(shapes: Path) -> None:
    def chosen(seed: int, which: int | str = 0) -> frozenset[Path]:
        given = {"data": shapes, "seed": seed, "data.fraction": 0.4, "data.fraction_seed": which}
        splits, _ = read_training_data(override(load_recipe("test"), given))
        assert splits.train is not None
        assert len(splits.train.records) == 3
        return frozenset(image_files(splits.train))

    assert len({chosen(seed) for seed in range(5)}) == 1
    assert len({chosen(seed, "run") for seed in range(5)}) > 1
    assert chosen(3, "run") == chosen(0, 3)


def test_validation_images_are_chosen_before(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path, num_train=10, num_val=1, image_size=64)
    shutil.rmtree(shapes / "valid")
    whole, part = (
        read_training_data(override(load_recipe("test"), {"data": shapes, "data.fraction": fraction})).splits
        for fraction in (1.0, 0.5)
    )
    assert whole.train is not None
    assert whole.val is not None
    assert part.train is not None
    assert part.val is not None
    assert image_files(part.val) == image_files(whole.val)
    assert image_files(part.train) < image_files(whole.train)
