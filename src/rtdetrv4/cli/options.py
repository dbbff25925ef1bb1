"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rtdetrv4.errors import ConfigError

Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A model (see `rtdetrv4 models`), weights, or a recipe file.")
]
TRAINED = typer.Option(
    "--model", "-m", help="Weights (.safetensors), a model by name (see `rtdetrv4 models`), or an exported file."
)
Trained = Annotated[str, TRAINED]
Weights = Annotated[
    str | None,
    typer.Option(help="With a model by name: coco (the default), obj365, obj2coco, or a file of its weights."),
]
DATA = typer.Option(
    "--data", "-d", help="Data set: a folder (COCO, YOLO, Pascal VOC, LabelMe, CVAT), or a YAML, COCO or CVAT file."
)
ImageSize = Annotated[str | None, typer.Option(help="Image size: 640, or HEIGHTxWIDTH such as 480x640.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 (or 1), mps.")]
RuntimePrecision = Annotated[
    Literal["fp32", "bf16"] | None,
    typer.Option(help="Of exported files: what OpenVINO computes floats in. Default: bf16 where the processor can."),
]
RuntimeDevice = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1 (or 1), mps; for exported files in the words of their runtime."),
]
Slice = Annotated[
    str | None,
    typer.Option(help="Detect in tiles of this many pixels of the image: 640, or HEIGHTxWIDTH such as 480x640."),
]
Overlap = Annotated[float | None, typer.Option(help="Share of a tile that its neighbor shows too. Default: 0.2.")]
Whole = Annotated[bool, typer.Option(help="With --slice, detect in the whole image as well.")]
Start = Annotated[
    str | None,
    typer.Option(help="Start from these: coco, obj365, obj2coco, imagenet (backbone only), none, or a file."),
]
Teacher = Annotated[
    str | None,
    typer.Option(help="Teacher to distill from (see `rtdetrv4 teachers`), several with commas between, or none."),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
Batch = Annotated[
    str | None,
    typer.Option(
        help="Images per optimizer step, across all devices; auto: the recipe's batch, split into parts that fit.",
        metavar="COUNT|auto",
    ),
]
LearningRate = Annotated[float | None, typer.Option(help="Learning rate.")]
Workers = Annotated[int | None, typer.Option(help="Number of processes that load images.")]
Amp = Annotated[str | None, typer.Option(help="Mixed precision: auto, bf16, fp16 or off.")]
Cache = Annotated[str | None, typer.Option(help="Keep decoded images: ram, disk or none.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="Folder for the results.")]
ExistOk = Annotated[
    bool, typer.Option("--exist-ok", help="Overwrite the run in --out, instead of writing to a new folder beside.")
]
AutoResume = Annotated[
    bool,
    typer.Option(
        "--auto-resume",
        help="Resume if there is a run to resume, or else start one: for schedulers that restart jobs. The same as "
        "--resume auto.",
    ),
]
Tracker = Annotated[str | None, typer.Option(help="Experiment tracker: tensorboard, wandb, mlflow, … or none.")]
Budget = Annotated[str | None, typer.Option(help="Time for the whole run, instead of --epochs: 30m, 2h.")]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that the model's file brings along. Only if you trust whoever made it."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting: --set optimizer.weight_decay=1e-4", metavar="NAME=VALUE"),
]


def require_data(data: str | None, model: str | None) -> None:
    """Raise unless a data set was given, or a recipe that names one."""
    if data is None and (model is None or Path(model).suffix not in (".yaml", ".yml")):
        raise ConfigError("Missing option --data: a folder with a COCO, YOLO, Pascal VOC, LabelMe or CVAT data set.")


def check_settings(
    model: str | None, weights: str | None, changes: Mapping[str, Any], budget: str | None, *, resume: bool = False
) -> None:
    """Raise for a setting that `Detector` would refuse, before its slow imports."""
    from rtdetrv4.config import DEFAULT_MODEL, given_settings, load_recipe, override, written_settings
    from rtdetrv4.config.budget import budget_seconds, parse_budget

    settled = given_settings(changes)
    if budget is not None:
        parse_budget(budget)
    known = DEFAULT_MODEL if model is None and weights is None and not resume else model
    if known is None or Path(known).suffix not in ("", ".yaml", ".yml"):  # weights or a run, which tell when read
        return
    recipe = override(load_recipe(known), changes)
    if budget is not None:
        budget_seconds(budget, recipe, settled | written_settings(known), resume=resume)


def given_options(**options: Any) -> dict[str, Any]:
    """The options that were given; the rest keep `Detector`'s defaults."""
    return {name: value for name, value in options.items() if value is not None}


def image_size_of(text: str | None) -> tuple[int, int] | None:
    """What --imgsz means."""
    if text is None:
        return None
    from rtdetrv4.config.schema import parse_image_size

    try:
        return parse_image_size(text)
    except ValueError as error:
        raise ConfigError(f'--imgsz: got "{text}", {error}.') from None


def batch_of(text: str | None) -> int | str | None:
    """What --batch means."""
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or text == "0":
        raise ConfigError(f'--batch: got "{text}", expected a number of images or auto.')
    return int(text)


def confidence_of(text: str) -> float | str:
    """What --conf means."""
    try:
        value = text if text == "best" else float(text)
    except ValueError:
        value = -1.0
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ConfigError(f'--conf: got "{text}", expected a number from 0 to 1, or best.')
    return value


def tiles_of(slice: str | None, overlap: float | None, whole: bool) -> dict[str, Any]:
    """What --slice, --overlap and --no-whole mean, as arguments of `Detector`."""
    if slice is None and (overlap is not None or not whole):
        raise ConfigError("--overlap and --no-whole belong to tiles; give their size, such as --slice 640.")
    if slice is not None:
        from rtdetrv4.runtime.slicing import Slicing

        Slicing.of(slice, **given_options(overlap=overlap))  # before weights are read
    return given_options(slice=slice, overlap=overlap, whole=None if whole else False)


def device_of(text: str | None) -> str | None:
    """What --device means."""
    if text is None:
        return None
    from rtdetrv4.config.schema import parse_device

    try:
        return parse_device(text)
    except ValueError as error:
        raise ConfigError(f'--device: got "{text}", {error}.') from None


def seeds_of(text: str | None) -> list[int]:
    """What --seed-list means."""
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f'--seed-list: got "{text}", expected numbers such as 0,2,5.') from None


def numbers_of(option: str, text: str) -> list[int]:
    """Counts with commas between, each once."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f'{option}: got "{text}", expected a number, 1 or more, or several such as 1,8.')
    return list(dict.fromkeys(int(part) for part in parts))


def words_of(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Some of the known words, with commas between, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(known):
        raise ConfigError(f'{option}: got "{text}", expected {" or ".join(known)}, or both with a comma between.')
    return list(dict.fromkeys(parts))
