"""Loading, extending, overriding and writing recipes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rtdetrv4.config import (
    Recipe,
    from_yaml,
    given_settings,
    load_recipe,
    override,
    parse_assignment,
    recipe_names,
    setting_names,
    to_yaml,
    written_settings,
)
from rtdetrv4.config.recipe import SHORT_NAMES
from rtdetrv4.config.schema import parse_duration, parse_size
from rtdetrv4.errors import ConfigError

S = load_recipe("rtdetrv4-s")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_a_round_trip_through_yaml(name: str) -> None:
    recipe = load_recipe(name)
    assert from_yaml(to_yaml(recipe)) == recipe


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12))
def test_text_stays_text_in_a_round_trip(text: str) -> None:
    recipe = override(S, {"run.out": text, "data.path": text})
    assert from_yaml(to_yaml(recipe)) == recipe


@pytest.mark.parametrize("text", ["off", "1e5", "16:9", "2024-01-01", "0x10", "null", "1_000", "yes", "~", ".5"])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    recipe = override(S, {"run.out": text})
    assert from_yaml(to_yaml(recipe)) == recipe


def test_recipes_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        S.schedule.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_file_extends_a_model_with_short_and_dotted_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: rtdetrv4-s\nimgsz: 320x640\noptimizer: {clip_norm: 1e-1}\nrun.amp: off\n")
    recipe = load_recipe(path)
    assert recipe.model.image_size == (320, 640)
    assert recipe.optimizer.clip_norm == 0.1
    assert recipe.run.amp == "off"
    assert recipe.distillation == S.distillation


def test_a_file_extends_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "parent.yaml").write_text("extends: deim-m\nseed: 7\n")
    (tmp_path / "inner" / "middle.yaml").write_text("extends: parent.yaml\nworkers: 1\n")
    (tmp_path / "child.yaml").write_text("extends: inner/middle.yaml\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    assert (recipe.model.name, recipe.run.seed, recipe.data.workers) == ("deim-m", 7, 1)


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &a0 {x: 1}\n" + "".join(f"b{n}: &a{n + 1} {{x: *a{n}, y: *a{n}}}\n" for n in range(60)),
            "more than 200000 values",
        ),
        ("schedule: &a {b: *a}", "line 1: an alias to what it is a part of"),
        ("epochs: " + "[" * 5000, "more than 50 lists and mappings inside each other"),
        ("epochs: 3\nepochs: 4", "line 2: the key 'epochs' twice"),
        ("epochs: " + "9" * 5000, "cannot be read"),
        ("epochs: !!timestamp x", "could not determine a constructor"),
        ("extends: rtdetrv4-s\nepochs: 1e400", "schedule.epochs: got inf (float), expected a valid integer"),
        ("extends: " + "a" * 10_000, "is neither a model nor a recipe file"),
        ("extends: ../../../../etc/passwd", "is neither a model nor a recipe file"),
        ('extends: "a\\0b"', r'"a\x00b" is neither'),
        ("extends: /dev/zero", '"/dev/zero" is neither a model nor a recipe file'),
        ("# " + "x" * 200_000, "it has 200 KB, expected at most 100 KB"),
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 2100


def test_a_recipe_that_extends_itself_by_ever_longer_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "recipe.yaml").write_text("extends: sub/../recipe.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(tmp_path / "recipe.yaml")
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n", encoding="utf-8")
    (tmp_path / "40.yaml").write_text("extends: rtdetrv4-s\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="more than 20 recipes in a row"):
        load_recipe(tmp_path / "0.yaml")
    assert load_recipe(tmp_path / "30.yaml") == S


def test_what_is_no_recipe_is_told_apart(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match=r'photo.jpg" is no recipe: it holds no text. Give a model'):
        load_recipe(photo)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(ConfigError, match=r"is the folder of a run; give its weights, .*weights.safetensors"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epocs: 3", r'Recipe ".*mine.yaml": "epocs" is not a setting. Did you mean "epochs"\?'),
        ("- 1\n- 2", r'Recipe ".*mine.yaml": got \[1, 2\] \(list\), expected settings such as "epochs: 50"'),
        ("epochs: [", r'".*mine.yaml" is not valid YAML in line 1'),
        ("model: {name: deim-s}", r"is not set; extend a shipped recipe"),
        ("extends: deim-z", r'"deim-z" is neither a model nor a recipe file. Did you mean "deim-[a-z]"\?'),
        ("extends: deim-s\nlr: fast", r"mine.yaml\": optimizer.lr: got 'fast' \(str\), expected a valid number"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r'Recipe file "nowhere\.yaml" does not exist'):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("amp", "bf16", "bf16"),
        ("batch", 8, 8),
        ("cache", "ram", "ram"),
        ("data", "datasets/mine", "datasets/mine"),
        ("device", "0", "cuda:0"),
        ("device", 1, "cuda:1"),
        ("epochs", 3, 3),
        ("imgsz", 320, (320, 320)),
        ("imgsz", "480x640", (480, 640)),
        ("imgsz", [480, 640], (480, 640)),
        ("lr", 1e-3, 1e-3),
        ("out", Path("runs/x"), str(Path("runs/x"))),
        ("seed", 5, 5),
        ("teacher", "vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("teacher", "none", None),
        ("workers", 0, 0),
    ],
)
def test_short_names(name: str, value: Any, expected: Any) -> None:
    changed = override(S, {name: value})
    section, leaf = SHORT_NAMES[name].split(".")
    assert getattr(getattr(changed, section), leaf) == expected
    assert changed != S


def test_every_short_name_means_a_setting() -> None:
    assert set(SHORT_NAMES.values()) <= set(setting_names())


def test_a_short_name_without_a_value_changes_nothing() -> None:
    assert override(S, dict.fromkeys(SHORT_NAMES)) == S


def test_nested_and_dotted_overrides_are_the_same() -> None:
    nested = override(S, {"loss": {"weights": {"giou": 3.0}}, "distillation.teacher": None})
    assert nested == override(S, {"loss.weights.giou": 3.0, "distillation": {"teacher": None}})
    assert nested.loss.weights.giou == 3.0
    assert nested.distillation.teacher is None


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("optimizer.lrr", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),  # the right name in the wrong section
        ("distilation.cache", "distillation.cache"),  # a leaf of several sections
        ("dta.cache", "data.cache"),
        ("pseudo_label.weight", "pseudo_labels.weight"),
        ("loss.weight.bbox", "loss.weights.bbox"),
        ("loss.macher.bbox", "loss.matcher.bbox"),
        ("epocs", "epochs"),
        ("lr_gama", "schedule.lr_gamma"),
        ("ema.decays", "ema.decay"),
        ("loss.weights.gio", "loss.weights.giou"),
    ],
)
def test_an_unknown_setting_suggests_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(S, {name: 1})
    assert str(caught.value) == f'"{name}" is not a setting. Did you mean "{suggestion}"?'


def test_a_name_like_no_setting_suggests_none() -> None:
    with pytest.raises(ConfigError) as caught:
        override(S, {"foo": 1})
    assert str(caught.value) == '"foo" is not a setting.'


def test_a_group_of_settings_is_not_a_setting() -> None:
    with pytest.raises(ConfigError, match=r'"ema" is a group of settings, expected one of them: ema\.decay'):
        override(S, {"ema": 0.9})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "abc"}, "optimizer.lr: got 'abc' (str), expected a valid number."),
        ({"lr": math.nan}, "optimizer.lr: got nan (float), expected a finite number."),
        ({"augment.flip": True}, "augment.flip: got True (bool), expected a valid number."),
        ({"augment.mosaic": 2}, "augment.mosaic: got 2 (int), expected less than or equal to 1."),
        ({"epochs": 1.5}, "schedule.epochs: got 1.5 (float), expected a valid integer."),
        ({"epochs": 0}, "schedule.epochs: got 0 (int), expected greater than or equal to 1."),
        ({"amp": "int8"}, "run.amp: got 'int8' (str), expected 'auto', 'bf16', 'fp16' or 'off'."),
        ({"cache": "gpu"}, "data.cache: got 'gpu' (str), expected 'none', 'ram' or 'disk'."),
        (
            {"data.cache_size": 4},
            "data.cache_size: got 4 (int), expected a size above zero, such as 500MB or 4GB.",
        ),
        (
            {"data.cache_size": "0GB"},
            "data.cache_size: got '0GB' (str), expected a size above zero, such as 500MB or 4GB.",
        ),
        ({"imgsz": 650}, "model.image_size: got 650 (int), expected multiples of 32, such as 640 or 672."),
        (
            {"imgsz": "big"},
            "model.image_size: got 'big' (str), expected one number for a square, or HEIGHTxWIDTH such as 480x640.",
        ),
        ({"device": "gpu"}, "run.device: got 'gpu' (str), expected auto, cpu, cuda, cuda:INDEX, mps or xpu."),
        ({"optimizer.betas": [2.0, 3.0]}, "optimizer.betas: got 2.0 (float), expected less than or equal to 1."),
        ({"model.name": ["s"]}, "model.name: got ['s'] (list), expected a model listed by `rtdetrv4 models`."),
        ({"optimizer.betas": [0.9]}, "optimizer.betas: got [0.9] (list), expected two numbers, such as [0.5, 1.5]."),
        (
            {"model.pretrained_backbone": 3},
            "model.pretrained_backbone: got 3 (int), expected a valid boolean or a valid string.",
        ),
        (
            {"model.name": "deims"},
            "model.name: got 'deims' (str), expected a model listed by `rtdetrv4 models`. Did you mean \"deim-s\"?",
        ),
        (
            {"schedule.refine_from": 10},
            "schedule.refine_from: expected at least basic_epochs (4) and mosaic_until (64), got 10.",
        ),
        (
            {"distillation.delta": 12},
            "distillation.delta: expected the band rho ± delta to lie between 0 and 100 percent, got 11.0 ± 12.0.",
        ),
        ({"batch": 6, "run.accumulate": 4}, "run.accumulate: expected a divisor of schedule.batch (6), got 4."),
        ({"augment.mosaic_scale": [2, 1]}, "augment.mosaic_scale: expected 0 < smallest <= largest, got [2.0, 1.0]."),
        ({"seed": -1, "workers": -1}, "data.workers: got -1 (int), expected greater than or equal to 0. (And 1 more.)"),
    ],
)
def test_a_wrong_value_says_field_got_and_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(S, changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("500MB", 500_000_000), ("4GB", 4_000_000_000), ("1.5 tb", 1_500_000_000_000), ("2GiB", 2 * 2**30)],
)
def test_sizes_have_units(text: str, num_bytes: int) -> None:
    assert parse_size(override(S, {"data.cache_size": text}).data.cache_size) == num_bytes


def test_several_devices_need_a_launcher() -> None:
    with pytest.raises(ConfigError, match="accelerate launch --num-processes 2"):
        override(S, {"device": "0,1"})


def test_stages_keep_their_share_of_the_epochs() -> None:
    schedule = override(S, {"epochs": 66}).schedule
    assert (schedule.basic_epochs, schedule.mosaic_until, schedule.flat_epoch) == (2, 32, 32)
    assert (schedule.refine_from, schedule.no_aug_epochs) == (60, 6)


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("epochs", [1, 2, 7, 36, 50, 300])
def test_any_number_of_epochs_gives_stages_in_order(name: str, epochs: int) -> None:
    recipe = load_recipe(name)
    schedule = override(recipe, {"epochs": epochs}).schedule
    assert 0 <= schedule.basic_epochs <= max(schedule.mosaic_until, schedule.basic_epochs) <= schedule.refine_from
    assert schedule.refine_from <= epochs
    assert 0 <= schedule.flat_epoch <= epochs
    if recipe.schedule.refine_from == recipe.schedule.epochs - recipe.schedule.no_aug_epochs:
        assert schedule.refine_from == schedule.epochs - schedule.no_aug_epochs


def test_a_stage_that_is_given_is_kept() -> None:
    schedule = override(S, {"epochs": 66, "schedule.mosaic_until": 10}).schedule
    assert (schedule.mosaic_until, schedule.flat_epoch) == (10, 32)


def test_learning_rates_follow_the_batch() -> None:
    optimizer = override(S, {"batch": 8}).optimizer
    assert optimizer.lr == pytest.approx(2e-4)
    assert optimizer.backbone_lr == pytest.approx(1e-4)


def test_a_learning_rate_that_is_given_is_kept_and_the_backbone_follows_it() -> None:
    optimizer = override(S, {"batch": 8, "lr": 1e-3}).optimizer
    assert optimizer.lr == 1e-3
    assert optimizer.backbone_lr == pytest.approx(5e-4)
    optimizer = override(S, {"lr": 1e-3, "optimizer.backbone_lr": 1e-6}).optimizer
    assert (optimizer.lr, optimizer.backbone_lr) == (1e-3, 1e-6)


def test_published_scaling_takes_numbers_as_written() -> None:
    changed = override(S, {"schedule.scaling": "published", "epochs": 50, "batch": 8, "lr": 1e-3})
    assert changed.schedule.mosaic_until == S.schedule.mosaic_until
    assert changed.optimizer.backbone_lr == S.optimizer.backbone_lr


def test_stages_follow_the_epochs_of_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: rtdetrv4-s\nepochs: 66\n")
    assert load_recipe(path) == override(S, {"epochs": 66})


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("epochs=50", "epochs", 50),
        ("run.amp=off", "run.amp", "off"),
        ("model.pretrained_backbone=false", "model.pretrained_backbone", False),
        ("augment.mosaic_scale=[0.8, 1.2]", "augment.mosaic_scale", [0.8, 1.2]),
        ("distillation.teacher=null", "distillation.teacher", None),
        ("distillation.teacher=", "distillation.teacher", None),
        ("data.path=a=b", "data.path", "a=b"),
        ("run.out=007", "run.out", "007"),
    ],
)
def test_assignments_are_yaml_scalars(text: str, name: str, value: Any) -> None:
    parsed = parse_assignment(text)
    assert parsed == (name, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('epochs=!!python/object/apply:os.system ["id"]', '"epochs" is not valid YAML in line 1: could not determine'),
        ("epochs=&a [*a]", "an alias to what it is a part of"),
        ("epochs=" + "[" * 5000, "more than 50 lists"),
        ("epochs=" + "9" * 5000, "cannot be read"),
    ],
)
def test_an_assignment_makes_no_objects(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_assignment(text)


def test_an_assignment_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'Got "epochs", expected NAME=VALUE such as schedule\.epochs=50'):
        parse_assignment("epochs")
    with pytest.raises(ConfigError, match='"epochs" is not valid YAML'):
        parse_assignment("epochs=[1")


def test_the_json_schema_describes_every_setting() -> None:
    schema = Recipe.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = [(name, field) for section in sections for name, field in section["properties"].items()]
    assert {name.rpartition(".")[2] for name in setting_names()} <= {name for name, _ in fields}
    # A group of settings is described where it is defined.
    assert [name for name, field in fields if not (field.get("description") or "$ref" in field)] == []
    assert all(section["description"] for section in sections)


def test_settings_that_a_file_and_its_parents_write(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("extends: deim-s\nepochs: 3\nmodel: {num_queries: 9}\n")
    path = tmp_path / "mine.yaml"
    path.write_text("extends: parent.yaml\nlr: 1e-3\nrun.amp: off\n")
    assert written_settings(path) == {"schedule.epochs", "model.num_queries", "optimizer.lr", "run.amp"}
    assert written_settings("deim-s") == frozenset()
    (tmp_path / "empty.yaml").write_text("")
    assert written_settings(tmp_path / "empty.yaml") == frozenset()


def test_settings_that_changes_set() -> None:
    changes = {"epochs": 3, "lr": None, "batch": "auto", "teacher": "none", "model": {"num_queries": 3}}
    assert given_settings(changes) == {
        "schedule.epochs",
        "run.accumulate",
        "distillation.teacher",
        "model.num_queries",
    }
    with pytest.raises(ConfigError, match="epocs"):
        given_settings({"epocs": 3})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1m5s", 65)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0m", "m", "5d", "-3m", "1m1h", "1 h", 30, None])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="such as 90s, 30m or 2h"):
        parse_duration(text)
