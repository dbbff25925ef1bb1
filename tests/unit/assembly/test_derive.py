"""Facts of data and machine → settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rtdetrv4.assembly.derive import (
    HIGHEST_LR,
    MAX_QUERIES,
    Choice,
    Limit,
    apply_choices,
    as_table,
    derive,
    doubts,
    evaluate_every,
)
from rtdetrv4.assembly.facts import DataFacts, Machine, Sources
from rtdetrv4.assembly.fitting import Derivation, Fitting
from rtdetrv4.assembly.pretraining import derive_pretraining
from rtdetrv4.assembly.training import build_plan
from rtdetrv4.config import Recipe, flat_settings, load_recipe, override
from rtdetrv4.distillation.teacher_catalog import DEFAULT_TEACHER, PIP_TEACHER
from rtdetrv4.errors import ConfigError

GB = 10**9
#: 1000 photos of 640×640 with a few objects of ordinary size.
DATA = DataFacts(
    num_images=1000,
    num_val=200,
    num_classes=3,
    most_boxes=20,
    many_boxes=18,
    median_side=0.2,
    small_side=0.1,
    image_hw=(640, 640),
    largest_image=640 * 640,
    aspect=1.0,
)
LAPTOP = Machine("cpu", 6 * GB, 6 * GB, cores=4)
SERVER = Machine("cpu", 22 * GB, 22 * GB, cores=2)
SMALL_GPU = Machine("cuda", 15 * GB, 28 * GB, cores=8)
LARGE_GPU = Machine("cuda", 79 * GB, 200 * GB, cores=32)
IMAGENET, COCO = Sources("imagenet"), Sources("coco")


def derived(
    model: str = "deim-n",
    data: DataFacts = DATA,
    machine: Machine = SERVER,
    sources: Sources = IMAGENET,
    limit: Limit | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Values by dotted name; `given` has underscores twice for dots."""
    mine = {name.replace("__", "."): value for name, value in given.items()}
    choices = derive(override(load_recipe(model), mine), mine, data, machine, sources, limit)
    return {choice.name: choice.value for choice in choices}


@pytest.mark.parametrize(
    ("num_images", "machine", "sources", "batch", "epochs"),
    [
        (1, SERVER, IMAGENET, 1, 300),
        (3, SERVER, IMAGENET, 3, 300),
        (20, SERVER, IMAGENET, 4, 300),  # 1500 steps
        (200, SERVER, IMAGENET, 4, 60),  # 3000 steps
        (200, SERVER, COCO, 4, 50),  # 2500 steps
        (292, SERVER, IMAGENET, 4, 42),
        (1000, SERVER, IMAGENET, 4, 36),
        (1000, SMALL_GPU, COCO, 8, 20),
        (100_000, SERVER, COCO, 4, 12),
        (100_000, LARGE_GPU, COCO, 32, 12),
        (100_000, LARGE_GPU, IMAGENET, 32, 36),
        (100_000, LARGE_GPU, Sources("none"), 32, 72),
        (5000, LARGE_GPU._replace(ranks=8), COCO, 32, 17),
    ],
)
def test_small_data_gets_small_batches_and_many_epochs(
    num_images: int, machine: Machine, sources: Sources, batch: int, epochs: int
) -> None:
    found = derived(data=DATA._replace(num_images=num_images), machine=machine, sources=sources)
    assert (found["schedule.batch"], found["schedule.epochs"]) == (batch, epochs)
    assert found["run.accumulate"] == "auto"


@pytest.mark.parametrize(
    ("image_hw", "aspect", "small_side", "machine", "size"),
    [
        ((640, 640), 1.0, 0.1, SERVER, (256, 256)),
        ((640, 640), 1.0, 0.05, SERVER, (320, 320)),  # a tenth of the objects is 13 pixels across at 256
        ((480, 640), 4 / 3, 0.1, SERVER, (224, 288)),
        ((3000, 4000), 4 / 3, 0.1, SERVER, (224, 288)),
        ((3000, 4000), 4 / 3, 0.02, SMALL_GPU, (544, 736)),
        ((3000, 4000), None, 0.02, SMALL_GPU, (640, 640)),
        ((300, 300), 1.0, 0.1, SMALL_GPU, (288, 288)),
        ((300, 300), 1.0, 0.05, SERVER, (288, 288)),
        ((64, 64), 1.0, 0.1, SERVER, (64, 64)),
        ((1, 10_000), 10_000.0, 0.1, SERVER, (64, 160)),  # no more than three times as wide as high
    ],
)
def test_the_image_size_follows_images_objects_and_device(
    image_hw: tuple[int, int], aspect: float | None, small_side: float, machine: Machine, size: tuple[int, int]
) -> None:
    data = DATA._replace(image_hw=image_hw, aspect=aspect, small_side=small_side)
    assert derived(data=data, machine=machine)["model.image_size"] == size


@pytest.mark.parametrize(
    ("many_boxes", "machine", "sources", "queries"),
    [
        (1, SERVER, IMAGENET, 100),
        (1, SERVER, COCO, 300),
        (1, SMALL_GPU, IMAGENET, 300),
        (115, SERVER, IMAGENET, 200),
        (500, SMALL_GPU, COCO, 750),
        (5000, SMALL_GPU, COCO, 1000),
    ],
)
def test_there_are_queries_for_nearly_every_image(
    many_boxes: int, machine: Machine, sources: Sources, queries: int
) -> None:
    data = DATA._replace(many_boxes=many_boxes)
    assert derived(data=data, machine=machine, sources=sources)["model.num_queries"] == queries


def test_there_are_no_more_queries_than_cells() -> None:
    # At 64 pixels the pyramid of N has 4² + 2² cells.
    assert derived(data=DATA._replace(image_hw=(64, 64)))["model.num_queries"] == 20


@pytest.mark.parametrize(
    ("many_boxes", "image_hw", "most_boxes"),
    [(22, (64, 64), 22), (18, (64, 64), 30), (18, (640, 640), 300), (5000, (640, 640), 5000), (1, (640, 640), 1)],
)
def test_the_number_of_queries_holds_what_its_reason_says_and_is_not_warned_of(
    many_boxes: int, image_hw: tuple[int, int], most_boxes: int
) -> None:
    data = DATA._replace(many_boxes=many_boxes, most_boxes=most_boxes, image_hw=image_hw)
    recipe = load_recipe("deim-n")
    choices = derive(recipe, (), data, SERVER, IMAGENET)
    choice = next(each for each in choices if each.name == "model.num_queries")
    if choice.value < many_boxes:
        assert f"{choice.value} is the most" in choice.reason
        assert ("larger imgsz" in choice.reason) == (choice.value < MAX_QUERIES)
    else:
        assert choice.reason.endswith(f"at most {many_boxes} object" + "s" * (many_boxes > 1))
    assert not [each for each in doubts(apply_choices(recipe, (), choices), data, ()) if "queries" in each]


@pytest.mark.parametrize(
    ("model", "sources", "epochs", "lr", "backbone_lr"),
    [
        ("deim-n", COCO, 20, 2e-4, 1e-4),
        ("deim-n", IMAGENET, 20, 1e-3, 1e-3),
        ("deim-n", Sources("none"), 20, 1e-3, 5e-3),
        ("deim-n", Sources("none"), 200, 1.4e-4, 1.4e-4),
        ("rtdetrv2-r18", Sources("none"), 20, 5e-4, 5e-4),
        ("deim-s", Sources("pretrained"), 20, 1e-3, 5e-3),
        ("deim-m", Sources("pretrained"), 20, 5e-4, 5e-4),
        ("deim-s", COCO, 20, 1e-4, 5e-5),
        ("deim-s", IMAGENET, 20, 1e-3, 1e-3),
        ("deim-l", IMAGENET, 20, 5e-4, 1e-4),
        ("rtdetrv2-r18", IMAGENET, 20, 5e-4, 1e-4),
        ("deim-s", IMAGENET, 200, 1.4e-4, 7e-5),  # 50 000 steps: published, 4e-4 at a batch of 32
    ],
)
def test_learning_rates_follow_the_start_and_the_length(
    model: str, sources: Sources, epochs: int, lr: float, backbone_lr: float
) -> None:
    found = derived(model, sources=sources, schedule__epochs=epochs)
    assert found["optimizer.lr"] == pytest.approx(lr)
    assert found["optimizer.backbone_lr"] == pytest.approx(backbone_lr)


def test_another_backbone_learns_no_faster_than_the_rest() -> None:
    found = derived(sources=Sources("none"), model__backbone="resnet18d", schedule__epochs=20)
    assert found["optimizer.backbone_lr"] == found["optimizer.lr"] == pytest.approx(1e-3)


def test_the_backbone_follows_a_given_learning_rate() -> None:
    found = derived(optimizer__lr=5e-4)
    assert "optimizer.lr" not in found
    assert found["optimizer.backbone_lr"] == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("epochs", "mosaic", "iou_crop", "basic", "refine"),
    [
        (3, 0, 0, 3, 3),  # 750 steps: flips only
        (20, 0, 0.5, 1, 16),  # 5000
        (200, 0.5, 0.8, 6, 182),  # 50 000: as published
    ],
)
def test_augmentation_grows_with_the_steps(
    epochs: int, mosaic: float, iou_crop: float, basic: int, refine: int
) -> None:
    found = derived("deim-s", schedule__epochs=epochs)
    assert found["augment.mosaic"] == mosaic
    assert found["augment.iou_crop"] == iou_crop
    assert found["schedule.basic_epochs"] == basic
    assert found["schedule.refine_from"] == refine


@pytest.mark.parametrize("num_images", [1, 3, 19, 1000])
@pytest.mark.parametrize("derivation", [derive, derive_pretraining])
def test_the_printed_warm_up_is_that_of_the_plan(num_images: int, derivation: Derivation) -> None:
    mine = {"schedule.epochs": 1, "schedule.batch": 1}
    recipe = override(load_recipe("rtdetrv4-n"), mine)
    choices = derivation(recipe, mine, DATA._replace(num_images=num_images), SERVER, IMAGENET, None)
    printed = next(choice.value for choice in choices if choice.name == "schedule.warmup_steps")
    assert build_plan(apply_choices(recipe, mine, choices), num_images).warmup_steps == printed


def test_short_runs_average_and_warm_up_shortly() -> None:
    found = derived(schedule__epochs=4)  # 1000 steps
    assert found["schedule.warmup_steps"] == 50
    assert found["ema.decay"] == pytest.approx(0.99)
    assert found["ema.warmup"] == 10  # 1000 × a horizon of 100 instead of 10 000


@pytest.mark.parametrize(
    ("machine", "data", "workers"),
    [
        (SERVER, DATA, 1),
        (LAPTOP, DATA, 2),
        (Machine("cpu", GB, GB, cores=1), DATA, 0),
        (SMALL_GPU, DATA, 7),
        (LARGE_GPU, DATA, 8),
        (LARGE_GPU, DATA._replace(num_images=20), 1),
        (SMALL_GPU._replace(host_memory=6 * GB), DATA._replace(largest_image=4000 * 3000), 2),
    ],
)
def test_workers_follow_cores_images_and_memory(machine: Machine, data: DataFacts, workers: int) -> None:
    assert derived(data=data, machine=machine)["data.workers"] == workers


@pytest.mark.parametrize(
    ("epochs", "num_images", "num_val", "every"),
    [(20, 292, 72, 1), (83, 292, 72, 2), (300, 2, 1, 6), (10, 100, 1000, 10), (4, 10, 1000, 4)],
)
def test_evaluation_takes_a_small_share_of_the_time(epochs: int, num_images: int, num_val: int, every: int) -> None:
    data = DATA._replace(num_images=num_images, num_val=num_val)
    assert evaluate_every(epochs, data) == every


@pytest.mark.parametrize(
    ("model", "machine", "teacher", "expected"),
    [
        ("rtdetrv4-s", SERVER, DEFAULT_TEACHER, {"distillation.teacher": None}),
        ("rtdetrv4-s", SMALL_GPU, None, {"distillation.teacher": None}),
        (
            "rtdetrv4-s",
            SMALL_GPU,
            DEFAULT_TEACHER,
            {"distillation.teacher": DEFAULT_TEACHER, "distillation.mode": "fixed"},
        ),
        (
            "rtdetrv4-s",
            SMALL_GPU,
            "efficientnet_lite2",
            {"distillation.teacher": "efficientnet_lite2", "distillation.mode": "fixed"},
        ),
        ("deim-s", SMALL_GPU, DEFAULT_TEACHER, {}),
    ],
)
def test_the_teacher_is_on_where_it_costs_nothing_to_have_it(
    model: str, machine: Machine, teacher: str | None, expected: dict[str, Any]
) -> None:
    found = derived(model, machine=machine, sources=Sources("coco", teacher=teacher))
    assert {name: value for name, value in found.items() if name.startswith("distillation")} == expected


@pytest.mark.parametrize("model", ["rtdetrv4-n", "rtdetrv4-s", "rtdetrv4-m", "rtdetrv4-l", "rtdetrv4-x"])
@pytest.mark.parametrize("machine", [SERVER, SMALL_GPU])
def test_a_teacher_that_is_asked_for_stays_but_the_published_band_does_not(model: str, machine: Machine) -> None:
    found = derived(model, machine=machine, distillation__teacher="dinov2-s")
    assert {name: value for name, value in found.items() if name.startswith("distillation")} == {
        "distillation.mode": "fixed"
    }


@pytest.mark.parametrize(
    ("epochs", "teacher", "is_fixed"),
    [(10, "dinov2-s", True), (1000, "dinov2-s", False), (1000, PIP_TEACHER, True)],
)
def test_a_run_as_long_as_the_published_ones_keeps_their_band(epochs: int, teacher: str, is_fixed: bool) -> None:
    found = derived("rtdetrv4-s", distillation__teacher=teacher, schedule__epochs=epochs)
    assert ("distillation.mode" in found) == is_fixed


@pytest.mark.parametrize(
    "given",
    [
        {"distillation__mode": "gam"},
        {"distillation__mode": "gam_paper"},
        {"distillation__mode": "auto"},
        {"distillation__mode": "off"},
        {"distillation__rho": 3.0},
        {"distillation__delta": 0.5},
        {"distillation__default_weight": 7.0},
    ],
)
def test_a_mode_or_band_that_is_asked_for_stays(given: dict[str, Any]) -> None:
    found = derived("rtdetrv4-s", distillation__teacher="dinov2-s", **given)
    assert not [name for name in found if name.startswith("distillation")]


@pytest.mark.parametrize(("weight", "is_off"), [(0.0, False), (1.0, True)])
def test_on_a_cpu_images_without_labels_need_a_teacher_or_pseudo_labels(weight: float, is_off: bool) -> None:
    given = {"data__unlabeled": ["photos"], "pseudo_labels__weight": weight}
    found = derived("rtdetrv4-s", sources=Sources("coco", teacher="efficientnet_lite2"), **given)
    assert (found["distillation.teacher"] is None) == is_off


def test_time_limits_the_epochs_and_what_follows_from_them() -> None:
    found = derived(limit=Limit(4, "an hour"))
    assert found["schedule.epochs"] == 4
    assert found["schedule.warmup_steps"] == 50
    assert derived(limit=Limit(8, "an hour"), schedule__epochs=30)["schedule.warmup_steps"] == 375


FACTS = st.builds(
    DataFacts,
    num_images=st.integers(1, 200_000),
    num_val=st.integers(0, 10_000),
    num_classes=st.integers(1, 400),
    most_boxes=st.integers(0, 2000),
    many_boxes=st.integers(0, 2000),
    median_side=st.floats(0.001, 1),
    small_side=st.floats(0.001, 1),
    image_hw=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    largest_image=st.integers(1, 10**9),
    aspect=st.none() | st.floats(0.1, 10),
)
MACHINES = st.builds(
    Machine,
    kind=st.sampled_from(["cpu", "cuda", "mps"]),
    memory=st.integers(0, 80 * GB),
    host_memory=st.integers(0, 500 * GB),
    cores=st.integers(1, 128),
    ranks=st.just(1),
)
SOURCES = st.builds(
    Sources,
    start=st.sampled_from(["coco", "imagenet", "none"]),
    teacher=st.sampled_from([None, DEFAULT_TEACHER, "efficientnet_lite2"]),
)
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "schedule.epochs": st.integers(1, 400),
        "schedule.batch": st.integers(1, 64),
        "schedule.basic_epochs": st.integers(0, 60),
        "schedule.mosaic_until": st.integers(0, 60),
        "schedule.refine_from": st.integers(0, 60),
        "schedule.warmup_steps": st.integers(0, 5000),
        "optimizer.lr": st.floats(1e-6, 1e-2),
        "optimizer.backbone_lr": st.floats(0, 1e-2),
        "model.image_size": st.sampled_from([(64, 64), (320, 640)]),
        "model.num_queries": st.integers(1, 500),
        "run.accumulate": st.sampled_from([1, 2, 4, "auto"]),
        "run.eval_every": st.integers(1, 20),
        "data.workers": st.integers(0, 20),
        "augment.mosaic": st.sampled_from([0.0, 0.3]),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["rtdetrv4-s", "deim-n", "dfine-l", "rtdetrv2-r18"]),
    FACTS,
    MACHINES,
    SOURCES,
    GIVEN,
    st.none() | st.builds(Limit, st.integers(1, 300), st.just("a reason")),
)
def test_whatever_the_facts_the_recipe_is_valid_and_what_is_given_stays(
    model: str, data: DataFacts, machine: Machine, sources: Sources, mine: dict[str, Any], limit: Limit | None
) -> None:
    try:
        recipe = override(load_recipe(model), mine)
    except ConfigError:  # the user contradicts the recipe
        assume(False)
        raise
    choices = derive(recipe, mine, data, machine, sources, limit)
    fitted = apply_choices(recipe, mine, choices)  # raises if it is not valid, or its stages are not in order
    found = flat_settings(fitted)
    assert {name: found[name] for name in mine} == mine
    assert not set(mine) & {choice.name for choice in choices}
    assert all(choice.reason for choice in choices)
    assert len({choice.name for choice in choices}) == len(choices)
    if not {"schedule.batch", "run.accumulate"} & set(mine):
        assert fitted.schedule.batch <= data.num_images
    if "model.num_queries" not in mine:
        height, width = fitted.model.image_size
        assert fitted.model.num_queries <= height * width / 8**2 * (1 + 1 / 4 + 1 / 16)
    if "optimizer.lr" not in mine:
        assert 0 < fitted.optimizer.lr < HIGHEST_LR
    if "run.eval_every" not in mine and data.num_val:
        assert fitted.run.eval_every <= fitted.schedule.epochs


def recipe_with(**changes: Any) -> Recipe:
    return override(load_recipe("deim-n"), {name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"epochs": 1, "batch": 32}, DATA, "31 optimizer steps"),
        ({"imgsz": 64}, DATA._replace(median_side=0.05), r"At 64×64 half of the objects are smaller than 3\.2 pixels"),
        ({"model__num_queries": 100}, DATA._replace(most_boxes=115), "115 objects, but 100 queries"),
        ({"lr": 0.1}, DATA, "0.1 is far too high"),
    ],
)
def test_a_run_that_cannot_work_says_so(changes: dict[str, Any], data: DataFacts, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(
            "\n".join(doubts(recipe_with(**changes), data, {name.replace("__", ".") for name in changes}))
        )


def test_an_ordinary_run_raises_no_doubts() -> None:
    assert doubts(recipe_with(epochs=10, batch=8), DATA, ()) == []


def test_each_line_of_the_table_is_a_message_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    fitting = Fitting((), DATA, SERVER, IMAGENET)
    recipe = fitting.fit(load_recipe("deim-n"))
    with caplog.at_level("INFO", "rtdetrv4"):
        fitting.report(recipe)
    first, *lines = caplog.messages
    assert first.startswith("Chosen for this data and machine")
    assert lines == as_table(fitting.choices).splitlines()
    assert all("\n" not in line and line == line.rstrip() for line in lines)


def test_the_table_has_a_line_for_each_reason() -> None:
    choices = (
        Choice("augment.mosaic", 0.0, "flips only"),
        Choice("augment.mixup", 0.5, "flips only"),
        Choice("model.image_size", (224, 288), "[wide]"),
        Choice("distillation.teacher", None, "no weights"),
    )
    lines = as_table(choices).splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "augment.mosaic 0, mixup 0.5",
        "model.image_size 224×288",
        "distillation.teacher none",
    ]
    assert [line.split("  ")[-1].strip() for line in lines] == ["flips only", "[wide]", "no weights"]
