"""Recipes that fit the data: facts → settings, each with its reason.

A published recipe is made for 118 thousand images and eight GPUs. `derive` replaces what depends on that, and leaves
alone whatever the user has set. It is a pure function of its arguments; `assembly.facts` gathers them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from rtdetrv4.assembly.facts import DataFacts, Machine, Sources, StartKind
from rtdetrv4.config import VARIANTS, Recipe, flat_settings, load_recipe, override
from rtdetrv4.data.batch import STRIDE
from rtdetrv4.data.document import count_of
from rtdetrv4.distillation import PIP_TEACHER
from rtdetrv4.training.plan import EMA_SHARE, WARMUP_SHARE

STEPS: Mapping[StartKind, int] = {"coco": 2500, "imagenet": 3000, "pretrained": 3000, "none": 12000}
"""Optimizer steps that a run should have. From an ImageNet backbone, S with flips only was best after 1100 steps, and
N with moderate augmentation after 2000 (docs/research/small-data.md); the other numbers are guesses."""
FEWEST_EPOCHS: Mapping[StartKind, int] = {"coco": 12, "imagenet": 36, "pretrained": 36, "none": 72}
MOST_EPOCHS = 300
PLAIN_STEPS: Mapping[StartKind, int] = {"coco": 1000, "imagenet": 1000, "pretrained": 1000, "none": 5000}
"""With fewer steps, flips are the only augmentation; with more, they alone let the curves level off or fall."""
MODERATE: Mapping[str, float] = {"mosaic": 0.0, "mixup": 0.0, "photometric": 0.5, "zoom_out": 0.3, "iou_crop": 0.5}
"""Augmentation between `PLAIN_STEPS` and `PUBLISHED_STEPS`: worth four points of AP to N in 2200 steps."""
PUBLISHED_STEPS = 20_000
"""From here on, augmentation and learning rates are the published ones."""
STEPS_PER_EPOCH, SMALL_BATCH = 64, 4
LARGEST_BATCH, LARGEST_BATCH_ON_CPU = 32, 4
FEW_IMAGES = 64
"""One worker loads them."""
LR_OF_TRAINED, LR_OF_NEW = 2e-4, 1e-3
"""Learning rates in short runs, from a trained detector at a batch of 16, and from anything less at a batch of 8. A
trained N, with 128 channels, takes twice as much. The second was measured with N and S, where half of it cost five
points of AP; deeper decoders and plain boxes, published with lower rates, take half."""
BACKBONE_SHARE, LARGE_BACKBONE_SHARE = 1.0, 0.2
"""The backbone's learning rate / that of the rest in short runs. The second is a guess for ImageNet weights in
detectors larger than N and S, which gained 2 to 4 points of AP by the first in its place (docs/research/study.md). A
trained detector keeps the published ratio, and so do ImageNet weights in long runs."""
FAST_BACKBONE, FAST_BACKBONE_SHARE = "hgnetv2_b0", 5.0
"""The share of this backbone without ImageNet weights. A batch norm after each of its convolutions undoes the weights'
scale, so what counts is a step's size relative to theirs, and they begin large. N and S gained 6 to 8 points of AP by
it (ibid.). No other backbone was measured."""
PUBLISHED_MODES = ("gam", "gam_paper")
"""Modes of `distillation.mode` that need a band from elsewhere. The published ones, for COCO in batches of 32, drove λ
from 5 to thousands on small data, where a fixed λ gained (docs/research/experiments.md)."""
BAND_SETTINGS = tuple(f"distillation.{name}" for name in ("rho", "delta", "default_weight", "probe_epochs"))
MIN_QUERIES, MAX_QUERIES, QUERY_ROOM = 100, 1000, 1.5
CPU_SIZES, LARGEST_SIZE = (256, 320), 640
CLEAR_OBJECT, SMALLEST_OBJECT = 16, 4
"""Pixels across: what a detector finds well, and what it hardly finds at all."""
ELONGATED, MOST_ELONGATED = 1.25, 3.0
MOST_EVALUATIONS, EVALUATION_SHARE, EVALUATION_COST = 50, 0.2, 1 / 3
"""Evaluations in a run; their share of its time; and the cost of evaluating an image relative to training on one."""
FEWEST_STEPS, HIGHEST_LR = 50, 0.01
TABLE_WIDTH = 68
"""Columns for settings; what is longer moves its reason to the right."""


class Choice(NamedTuple):
    """A derived setting."""

    name: str
    """Dotted."""
    value: Any
    reason: str


class Limit(NamedTuple):
    """What time allows."""

    epochs: int
    reason: str


def derive(
    recipe: Recipe,
    given: Collection[str],
    data: DataFacts,
    machine: Machine,
    sources: Sources,
    limit: Limit | None = None,
) -> tuple[Choice, ...]:
    """Settings that fit the data and the machine.

    Args:
        recipe: the model's recipe with the user's settings.
        given: dotted names of the user's settings; they are not derived.
        data: facts of the data.
        machine: facts of the machine.
        sources: what training starts from and learns from.
        limit: the epochs that time allows; None does not limit them.
    """
    return _Derivation(recipe, given, data, machine, sources).choices(limit)


def apply_choices(recipe: Recipe, given: Collection[str], choices: Iterable[Choice]) -> Recipe:
    """The recipe with derived settings; those in `given` stay as they are."""
    settings = flat_settings(recipe)
    # Naming the given ones keeps them from following a changed batch or number of epochs.
    return override(recipe, {name: settings[name] for name in given} | {name: value for name, value, _ in choices})


class _Derivation:
    """Derives one group of settings per method; later groups depend on earlier ones."""

    def __init__(
        self, recipe: Recipe, given: Collection[str], data: DataFacts, machine: Machine, sources: Sources
    ) -> None:
        self.settings = flat_settings(recipe)
        self.given = given
        self.data = data
        self.machine = machine
        self.sources = sources
        self.start: StartKind = sources.start
        self.variant = VARIANTS[recipe.model.name]
        self.published = _published(recipe.model.name)
        self.found: list[Choice] = []

    def choices(self, limit: Limit | None) -> tuple[Choice, ...]:
        teacher = self._teacher()
        size = self._image_size()
        self._queries(size)
        batch = self._batch()
        steps_per_epoch = max(self.data.num_images // batch, 1)
        epochs = self._epochs(steps_per_epoch, limit)
        steps = epochs * steps_per_epoch
        if teacher is not None:
            self._modulation(teacher, steps)
        self._learning_rates(batch, steps)
        self._augmentation(steps)
        self._stages(epochs, steps)
        self._averaging(steps)
        self._evaluation(epochs)
        self._workers()
        return tuple(self.found)

    def choose(self, name: str, value: Any, reason: str) -> Any:
        """Note a choice and return the value that will count, which is the user's if there is one."""
        if name in self.given:
            return self.settings[name]
        self.found.append(Choice(name, value, reason))
        return value

    def _teacher(self) -> str | None:
        if self.settings["distillation.mode"] == "off":
            return None
        own, found = self.published["distillation.teacher"], self.sources.teacher
        if own is None or "distillation.teacher" in self.given:
            return self.settings["distillation.teacher"]
        # Images without labels need one, unless they get pseudo-labels.
        is_needed = self.settings["data.unlabeled"] and not self.settings["pseudo_labels.weight"]
        if self.machine.kind == "cpu" and not is_needed:
            found, reason = None, "on a CPU its time is better spent on steps; --teacher NAME turns distillation on"
        elif found is None:
            reason = "no teacher's weights are on this machine; --teacher dinov3-b downloads one's"
        elif found == PIP_TEACHER:
            reason = f"{own} is not on this machine; this one came with pip"
        else:
            reason = "its weights are on this machine"
        return self.choose("distillation.teacher", found, reason)

    def _modulation(self, teacher: str, steps: int) -> None:
        # A user who names a band means it, even if he leaves the mode to the recipe.
        names_band = any(name in self.given for name in BAND_SETTINGS)
        if names_band or self.settings["distillation.mode"] not in PUBLISHED_MODES:
            return
        if steps < PUBLISHED_STEPS:
            self.choose("distillation.mode", "fixed", "the recipe's band for GAM is that of long runs on COCO")
        elif teacher == PIP_TEACHER:
            self.choose("distillation.mode", "fixed", "the recipe's band for GAM is that of another teacher")

    def _image_size(self) -> tuple[int, int]:
        data = self.data
        height, width = data.image_hw
        if self.machine.kind == "cpu":
            small, large = CPU_SIZES
            is_clear = data.small_side * small >= CLEAR_OBJECT
            side, reason = (small, "a CPU") if is_clear else (large, "a CPU, but small objects")
        else:
            side, reason = LARGEST_SIZE, "a GPU"
        images = math.sqrt(height * width)
        if images < side - STRIDE / 2:
            side, reason = max(_multiple(images), STRIDE), f"images of {width}×{height} have no more pixels"
        aspect = data.aspect
        if aspect is None or 1 / ELONGATED < aspect < ELONGATED:
            size = (side, side)
        else:
            stretch = math.sqrt(min(max(aspect, 1 / MOST_ELONGATED), MOST_ELONGATED))
            size = (_multiple(side / stretch), _multiple(side * stretch))
            reason += f"; most images are {aspect:.2f} times as wide as high"
        return self.choose("model.image_size", size, reason)

    def _queries(self, size: tuple[int, int]) -> None:
        strides = (8, 16, 32)[-len(self.variant.num_points) :]
        cells = sum((size[0] // stride) * (size[1] // stride) for stride in strides)
        wanted = math.ceil(QUERY_ROOM * self.data.many_boxes / 50) * 50
        is_slow = self.machine.kind == "cpu" and self.start != "coco"
        least = MIN_QUERIES if is_slow else self.published["model.num_queries"]
        number = min(max(wanted, least), MAX_QUERIES, cells)
        reason = f"almost all images have at most {count_of(self.data.many_boxes, 'object', 'objects')}"
        if number < self.data.many_boxes:
            reason = f"there are images with {self.data.many_boxes} objects, but {number} is the most"
            if number == cells:
                reason += f" at {size[0]}×{size[1]}; a larger imgsz allows more"
        self.choose("model.num_queries", number, reason)

    def _batch(self) -> int:
        images, ranks = self.data.num_images, self.machine.ranks
        largest = LARGEST_BATCH_ON_CPU if self.machine.kind == "cpu" else LARGEST_BATCH
        batch = min(max(SMALL_BATCH, 2 * ranks), images)
        while 2 * batch <= largest and images // (2 * batch) >= STEPS_PER_EPOCH:
            batch *= 2
        parts = self.settings["run.accumulate"] if "run.accumulate" in self.given else 1
        unit = ranks * (parts if isinstance(parts, int) else 1)
        batch = max(batch // unit, 1) * unit  # which all ranks and parts share equally
        reason = (
            f"{count_of(images, 'image', 'images')} in {count_of(max(images // batch, 1), 'step', 'steps')} per epoch"
        )
        chosen = self.choose("schedule.batch", batch, reason)
        self.choose("run.accumulate", "auto", "as few parts as fit in memory")
        return chosen

    def _epochs(self, steps_per_epoch: int, limit: Limit | None) -> int:
        wanted = math.ceil(STEPS[self.start] / steps_per_epoch)
        epochs = min(max(wanted, FEWEST_EPOCHS[self.start]), MOST_EPOCHS)
        reason = f"{epochs * steps_per_epoch} steps from {START_WORDS[self.start]}"
        if limit is not None:
            epochs, reason = limit
        return self.choose("schedule.epochs", epochs, reason)

    def _learning_rates(self, batch: int, steps: int) -> None:
        published = self.published
        ratio = published["optimizer.backbone_lr"] / published["optimizer.lr"]
        is_small = self.variant.decoder_layers <= 3 and self.variant.head == "distribution"
        if steps >= PUBLISHED_STEPS:
            lr = published["optimizer.lr"] * math.sqrt(batch / published["schedule.batch"])
            if self.start == "coco":
                lr /= 2
            reason = f"published for batches of {published['schedule.batch']}, for {batch}"
        else:
            if self.start == "coco":
                narrow = 2 if self.variant.hidden_dim < 256 else 1
                lr = narrow * LR_OF_TRAINED * math.sqrt(batch / 16)
            else:
                lr = LR_OF_NEW * (1 if is_small else 0.5) * min(max(math.sqrt(batch / 8), 1), math.sqrt(2))
            reason = f"a short run from {START_WORDS[self.start]}, in batches of {batch}"
        lr = self.choose("optimizer.lr", _rounded(lr), reason)
        share = self._backbone_share(steps, ratio, is_small)
        self.choose("optimizer.backbone_lr", _rounded(share * lr), f"{share:.2g} of lr from {START_WORDS[self.start]}")

    def _backbone_share(self, steps: int, published: float, is_small: bool) -> float:
        is_short = steps < PUBLISHED_STEPS
        if self.start == "coco" or (self.start == "imagenet" and not is_short):
            return published
        if self.start == "imagenet":
            return BACKBONE_SHARE if is_small else LARGE_BACKBONE_SHARE
        backbone = self.settings["model.backbone"] or self.variant.backbone
        return FAST_BACKBONE_SHARE if is_short and backbone == FAST_BACKBONE else BACKBONE_SHARE

    def _augmentation(self, steps: int) -> None:
        names = [f"augment.{name}" for name in MODERATE]
        if steps >= PUBLISHED_STEPS:
            values: Sequence[float] = [self.published[name] for name in names]
            reason = f"published; {steps} steps are enough"
        elif steps >= PLAIN_STEPS[self.start]:
            values, reason = tuple(MODERATE.values()), f"moderate, for {steps} steps"
        else:
            values, reason = (0.0,) * len(names), f"flips only: {steps} steps are too few for more"
        for name, value in zip(names, values, strict=True):
            self.choose(name, value, reason)
        scales = self.published["augment.multi_scale_repeat"] if steps >= PUBLISHED_STEPS else None
        self.choose("augment.multi_scale_repeat", scales, reason if scales else "one size: a shorter way")

    def _stages(self, epochs: int, steps: int) -> None:
        """Boundaries of the stages, in order whatever the user has set of them."""
        if steps >= PUBLISHED_STEPS:
            growth = epochs / self.published["schedule.epochs"]
            names = ("basic_epochs", "mosaic_until", "refine_from", "flat_epoch", "no_aug_epochs")
            basic, mosaic, refine, flat, tail = (
                math.floor(self.published[f"schedule.{name}"] * growth + 0.5) for name in names
            )
            gamma, reason = self.published["schedule.lr_gamma"], f"as published, for {epochs} epochs"
        else:
            is_plain = steps < PLAIN_STEPS[self.start]
            basic = epochs if is_plain else round(0.05 * epochs)
            refine = epochs if is_plain else round(0.8 * epochs)
            mosaic, flat, tail, gamma = basic, round(0.5 * epochs), max(round(0.05 * epochs), 1), 0.05
            reason = "flips to the end" if is_plain else "flips only in the first 5 and the last 20 %"
        bounds = {"schedule.basic_epochs": basic, "schedule.mosaic_until": mosaic}
        refine = max([refine, *(self.settings[name] for name in bounds if name in self.given)])
        refine = self.choose("schedule.refine_from", refine, reason)
        for name, value in bounds.items():
            self.choose(name, min(value, refine), reason)
        reason = "falls in the second half, to a twentieth" if gamma == 0.05 else reason
        self.choose("schedule.flat_epoch", flat, reason)
        self.choose("schedule.no_aug_epochs", tail, reason)
        self.choose("schedule.lr_gamma", gamma, reason)

    def _averaging(self, steps: int) -> None:
        warmup = min(self.published["schedule.warmup_steps"], int(WARMUP_SHARE * steps))
        self.choose("schedule.warmup_steps", warmup, f"at most {WARMUP_SHARE:.0%} of {steps} steps")
        decay = self.published["ema.decay"]
        longest = max(EMA_SHARE * steps, 1.0)
        shrink = min(1.0, longest * (1 - decay))
        reason = f"looks back over at most {EMA_SHARE:.0%} of {steps} steps"
        self.choose("ema.decay", round(min(decay, 1 - 1 / longest), 6), reason)
        restart = min(self.published["ema.restart_decay"], 1 - 1 / longest)
        self.choose("ema.restart_decay", round(restart, 6), reason)
        self.choose("ema.warmup", max(round(self.published["ema.warmup"] * shrink), 1), reason)

    def _evaluation(self, epochs: int) -> None:
        if self.data.num_val:
            number = evaluate_every(epochs, self.data)
            images = count_of(self.data.num_val, "image", "images")
            reason = f"{count_of(math.ceil(epochs / number), 'evaluation', 'evaluations')} of {images}"
            self.choose("run.eval_every", number, reason)

    def _workers(self) -> None:
        data, machine = self.data, self.machine
        if machine.kind == "cpu":
            wanted, reason = min(machine.cores // 2, 4), f"training itself needs the {machine.cores} cores"
        else:
            wanted, reason = min(max(machine.cores - 1, 1), 8), f"{machine.cores} cores"
        # Decoded, and copied once; a mosaic is made of four.
        fitting = machine.host_memory // 4 // ((300 << 20) + 8 * 3 * data.largest_image)
        if fitting < wanted:
            wanted, reason = fitting, f"images of {data.largest_image / 1e6:.0f} megapixels need memory"
        if data.num_images < FEW_IMAGES and wanted > 1:
            wanted, reason = 1, f"only {count_of(data.num_images, 'image', 'images')}"
        self.choose("data.workers", wanted, reason)


def evaluate_every(epochs: int, data: DataFacts) -> int:
    """Epochs between evaluations, so that these are not too many and take no large share of the time."""
    by_cost = EVALUATION_COST * data.num_val / (EVALUATION_SHARE * data.num_images)
    return min(max(math.ceil(epochs / MOST_EVALUATIONS), math.ceil(by_cost), 1), epochs)


def doubts(recipe: Recipe, data: DataFacts, given: Collection[str]) -> list[str]:
    """Why a run can hardly work; one sentence each.

    Args:
        recipe: all settings.
        data: facts of the data.
        given: dotted names of the user's settings; the reason of a derived one already says what it cannot do.
    """
    found = []
    schedule, size = recipe.schedule, recipe.model.image_size
    steps = schedule.epochs * max(data.num_images // schedule.batch, 1)
    if steps < FEWEST_STEPS:
        found.append(
            f"{count_of(steps, 'optimizer step', 'optimizer steps')} in all teach next to nothing: use more epochs, "
            f"more images or a smaller batch than {schedule.batch}."
        )
    pixels = data.median_side * math.sqrt(size[0] * size[1])
    if pixels < SMALLEST_OBJECT:
        found.append(
            f"At {size[0]}×{size[1]} half of the objects are smaller than {pixels:.1f} pixels, too small to be found: "
            "use a larger imgsz, or cut the images into tiles."
        )
    if "model.num_queries" in given and data.most_boxes > recipe.model.num_queries:
        found.append(
            f"One training image has {data.most_boxes} objects, but {recipe.model.num_queries} queries find at most as "
            "many: set model.num_queries higher."
        )
    if recipe.optimizer.lr > HIGHEST_LR:
        found.append(f"A learning rate of {recipe.optimizer.lr:g} is far too high for AdamW: use 1e-4 to 1e-3.")
    return found


def as_table(choices: Sequence[Choice]) -> str:
    """Settings with their values and reasons; neighbors of one section with the same reason share a line."""
    rows: list[tuple[str, str]] = []
    for (section, reason), group in itertools.groupby(choices, lambda each: (each.name.partition(".")[0], each.reason)):
        settings = ", ".join(f"{each.name.partition('.')[2]} {_shown(each.value)}" for each in group)
        rows.append((f"{section}.{settings}", reason))
    width = min(max((len(settings) for settings, _ in rows), default=0), TABLE_WIDTH)
    return "\n".join(f"  {settings:<{width}}  {reason}" for settings, reason in rows)


def with_final_values(choices: Iterable[Choice], recipe: Recipe) -> tuple[Choice, ...]:
    """The choices with numbers where they said auto."""
    settings = flat_settings(recipe)
    return tuple(choice._replace(value=settings[choice.name]) for choice in choices)


START_WORDS: Mapping[StartKind, str] = {
    "coco": "a trained detector",
    "imagenet": "an ImageNet backbone",
    "pretrained": "a backbone that a teacher taught",
    "none": "random weights",
}


@cache
def _published(model: str) -> Mapping[str, Any]:
    return flat_settings(load_recipe(model))


def _multiple(length: float) -> int:
    return max(round(length / STRIDE) * STRIDE, STRIDE)


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
