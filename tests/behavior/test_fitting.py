"""Training without settings: what is derived, logged, saved, limited by time, and left alone."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdetrv4 import ConfigError, Detector
from rtdetrv4.assembly import training
from rtdetrv4.config import load_recipe
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.training.pace import Pace

DERIVE = {"run.derive": True, "loss.gamma": 1.25}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=4, image_size=64)


def begin(detector: Detector, *args: Any, **options: Any) -> Any:
    """Train, but stop before the first step; what is derived has been written by then. Return the trainer."""
    stopped = []

    def stop(trainer: Any, *args: Any) -> None:
        stopped.append(trainer)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            detector.train(*args, **options)
    return stopped[0]


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step and every evaluation takes 10 seconds."""
    monkeypatch.setattr(training, "measure_pace", lambda *args, **options: Pace(10.0, 10.0))


def derived(run: Path) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads((run / "run.json").read_text())["derived"]}


@pytest.mark.usefixtures("pace")
def test_a_budget_decides_how_long_a_run_is(shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rtdetrv4"):
        begin(Detector("test"), shapes, out=tmp_path, budget="3m", batch=8, overrides=DERIVE)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    # 162 of 180 seconds: three epochs of 1 × 10 + 1 + 10 seconds, and 10 + 15 at the end, take 88; six take 151.
    assert recipe.schedule.epochs == 6
    assert recipe.schedule.batch == 8, "given"
    assert recipe.loss.gamma == 1.25, "given"
    assert recipe.run.accumulate == 1, "measured"
    assert recipe.model.num_queries == 84, "cells of a pyramid of 64 pixels"
    choices = derived(tmp_path)
    assert choices["schedule.epochs"]["reason"] == "6 steps, as many as 3 min allow"
    assert choices["run.accumulate"]["value"] == 1
    assert not {"schedule.batch", "loss.gamma"} & choices.keys()
    text = caplog.text
    assert "schedule.epochs 6 " in text
    assert "Training will take about 3 min." in text
    assert "6 optimizer steps in all teach next to nothing" in text


@pytest.mark.parametrize(("most", "epochs"), [(8, 6), (2, 2)])
def test_the_pace_is_measured_with_what_fits_into_memory(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, epochs: int
) -> None:
    def measure(*args: Any, batch: int, accumulate: int, **options: Any) -> Pace:
        if batch > most:
            raise torch.OutOfMemoryError
        return Pace(10.0 * accumulate, 10.0)

    monkeypatch.setattr(training, "measure_pace", measure)
    begin(Detector("test"), shapes, out=tmp_path, budget="3m", batch=8, overrides={**DERIVE, "run.accumulate": 1})
    # In four parts, a step takes 40 seconds: two epochs of 40 + 1 + 10 seconds take 127 with the end, three 178.
    assert load_recipe(tmp_path / "recipe.yaml").schedule.epochs == epochs


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize(("options", "seconds"), [({"budget": "3m"}, 180), ({}, 1800), ({"epochs": 5}, None)])
def test_the_time_limits_a_run_that_turns_out_slower(
    shapes: Path, tmp_path: Path, options: dict[str, Any], seconds: float | None
) -> None:
    begun = time.monotonic()
    trainer = begin(Detector("test"), shapes, out=tmp_path, overrides=DERIVE, **options)
    if seconds is None:
        assert trainer.deadline is None
    else:  # less the last evaluation and the report, which take 10 and 15 seconds
        assert begun <= trainer.deadline - (seconds - 25) <= time.monotonic()


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize(
    ("given", "epochs"),
    # Of 1620 seconds, 25 are for the end; an epoch takes 2 × 10 + 1 seconds, and every second one 10 for evaluation.
    [(None, 61), (200, 200)],
)
def test_half_an_hour_on_a_cpu_is_enough_unless_epochs_are_given(
    shapes: Path, tmp_path: Path, given: int | None, epochs: int
) -> None:
    begin(Detector("test"), shapes, out=tmp_path, epochs=given, overrides=DERIVE)
    assert load_recipe(tmp_path / "recipe.yaml").schedule.epochs == epochs


@pytest.mark.usefixtures("pace")
def test_resume_derives_nothing_anew(shapes: Path, tmp_path: Path) -> None:
    changes = {**DERIVE, "model.backbone": "test_efficientnet", "run.tracker": "none"}
    Detector("test").train(shapes, out=tmp_path, epochs=1, batch=4, overrides=changes)
    before, choices = load_recipe(tmp_path / "recipe.yaml"), derived(tmp_path)
    assert choices
    Detector(tmp_path / "recipe.yaml").train(out=tmp_path, resume=True)
    assert load_recipe(tmp_path / "recipe.yaml") == before
    assert derived(tmp_path) == choices
    with pytest.raises(ConfigError, match="resumes with the epochs"):
        Detector("test").train(shapes, out=tmp_path, resume=True, budget="3m")


@pytest.mark.usefixtures("pace")
def test_a_recipe_file_keeps_what_is_written_in_it(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: test\nepochs: 1\nrun: {derive: true}\nschedule: {batch: 2}\nmodel: {num_queries: 7}\n")
    begin(Detector(file), shapes, out=tmp_path / "run", workers=0)
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.schedule.epochs, recipe.schedule.batch, recipe.model.num_queries) == (1, 2, 7)
    assert (
        not {"schedule.epochs", "schedule.batch", "model.num_queries", "data.workers"}
        & derived(tmp_path / "run").keys()
    )
    # A saved recipe is complete, and so it repeats its run.
    begin(Detector(tmp_path / "run" / "recipe.yaml"), shapes, out=tmp_path / "again")
    assert derived(tmp_path / "again") == {}
    with pytest.raises(ConfigError, match="both epochs and budget"):
        Detector(file).train(shapes, out=tmp_path / "run", budget=60)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"run.derive": False}, "run.derive is false; give epochs, or set run.derive=true."),
        (
            {"run.derive": True, "schedule.scaling": "published"},
            "schedule.scaling is published; give epochs, or set schedule.scaling=auto.",
        ),
    ],
)
def test_published_numbers_stay(shapes: Path, tmp_path: Path, settings: dict[str, Any], cure: str) -> None:
    detector = Detector("test")
    begin(detector, shapes, out=tmp_path, epochs=4, overrides=settings)
    assert derived(tmp_path) == {}
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.optimizer == load_recipe("test").optimizer
    assert recipe.schedule.refine_from == 3
    with pytest.raises(ConfigError, match=f"this test are taken as they are, because {cure}"):
        detector.train(shapes, out=tmp_path, budget="1h", overrides=settings)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("30", 'budget: got "30", expected a duration above zero, such as 90s, 30m or 2h'),
        ("soon", 'budget: got "soon", expected'),
        (0, 'budget: got "0", expected'),
        (-5.0, "budget: got"),
    ],
)
def test_a_budget_that_is_none(shapes: Path, tmp_path: Path, budget: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Detector("test").train(shapes, out=tmp_path, budget=budget, overrides=DERIVE)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize(
    "options",
    [{"budget": "3m"}, {"epochs": 30, "overrides": {"augment.mosaic": 0.25}}, {"overrides": {"run.derive": False}}],
    ids=["budget", "epochs", "recipe"],
)
def test_augment_shows_what_train_would_do(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    runs: list[training.Trainer] = []

    def stop(trainer: training.Trainer, *_: Any) -> None:
        runs.append(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "run", stop)
    monkeypatch.setattr(
        "rtdetrv4.training.stage_sheet.draw_stage_sheet", lambda *args, **given: drawn.extend((args, given))
    )
    drawn: list[Any] = []
    options = {"seed": 5, "batch": 4, **options, "overrides": {"run.derive": True, **options.get("overrides", {})}}
    with pytest.raises(KeyboardInterrupt):
        Detector("test").train(shapes, out=tmp_path, **options)
    (run,) = runs
    Detector("test").augment(shapes, **options, out=tmp_path / "sheet.png", num_images=1)
    (split, data, plan, path), given = drawn
    assert plan == run.plan
    assert (data.augment, data.image_size, data.multi_scale_repeat, data.seed) == (
        run.data.augment,
        run.data.image_size,
        run.data.multi_scale_repeat,
        5,
    )
    assert data.loader.batch_size == run.data.loader.batch_size
    assert given == {"num_images": 1, "accumulate": run.accumulate}
    assert (len(split.records), path) == (8, tmp_path / "sheet.png")


def test_a_sheet_is_not_written_over(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sheets = [Detector("test").augment(shapes, num_images=1) for _ in range(2)]
    assert sheets == [Path("runs/augment.jpg"), Path("runs/augment-2.jpg")]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    with pytest.raises(
        ConfigError, match=r'out: got "sheet", expected a file name that ends in \.jpg, \.jpeg or \.png'
    ):
        Detector("test").augment(shapes, out="sheet")
    with pytest.raises(ConfigError, match="num_images: got 0, expected at least 1"):
        Detector("test").augment(shapes, num_images=0)
