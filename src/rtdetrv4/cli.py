"""`rtdetrv4 train | augment | doctor | val | predict | export | convert | compare | report | models | teachers | demo`.

A user's mistake prints one line to stderr and exits with code 2; an interrupted command exits with code 130; a training
of which only the final report failed exits with code 1, and so does `doctor` if it finds something. Slow imports happen
inside the commands, so that help and error messages appear quickly.
"""

from __future__ import annotations

import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
import typer.core

import rtdetrv4
from rtdetrv4.errors import ConfigError, RTDETRError

if TYPE_CHECKING:
    from rtdetrv4 import Detections, Detector
    from rtdetrv4.comparison import Comparison
    from rtdetrv4.doctor import Findings
    from rtdetrv4.evaluation import Metrics

EXIT_INCOMPLETE = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
WIDE = 132
"""Columns of a terminal from which on tables show all that there is."""
NUM_EXAMPLES = 5
"""Of each finding of `doctor`, on the console."""

# The extra that each command needs; the others need at most `torch`.
_EXTRAS = {
    "train": "train",
    "augment": "train",
    "doctor": "train",
    "val": "train",
    "compare": "train",
    "report": "train",
    "export": "export",
    "demo": "demo",
}
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # not every version of typer exports it


class _Commands(typer.core.TyperGroup):
    """Says how to resume after Ctrl-C, because typer's own reaction depends on its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # its message says where training stopped
            print(" ".join(f"interrupted. {stop}".split()), file=sys.stderr)
            return EXIT_INTERRUPTED


app = typer.Typer(
    cls=_Commands,
    name="rtdetrv4",
    help="Real-time object detection transformers, taught by vision foundation models.",
    add_completion=False,
    rich_markup_mode="rich",
)

_Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A model (see `rtdetrv4 models`), weights, or a recipe file.")
]
_TrainedOption = typer.Option(
    "--model", "-m", help="Weights (.safetensors), a model by name (see `rtdetrv4 models`), or an exported .onnx file."
)
_Trained = Annotated[str, _TrainedOption]
_Weights = Annotated[
    str | None,
    typer.Option(help="With a model by name: coco (the default), obj365, obj2coco, or a file of its weights."),
]
_DATA = typer.Option(
    "--data", "-d", help="Data set: a folder (COCO, YOLO, Pascal VOC, LabelMe, CVAT), or a YAML, COCO or CVAT file."
)
_ImageSize = Annotated[str | None, typer.Option(help="Image size: 640, or HEIGHTxWIDTH such as 480x640.")]
_Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 (or 1), mps.")]

# Options of both `val` and `predict`.
_Slice = Annotated[
    str | None,
    typer.Option(help="Detect in tiles of this many pixels of the image: 640, or HEIGHTxWIDTH such as 480x640."),
]
_Overlap = Annotated[float | None, typer.Option(help="Share of a tile that its neighbor shows too. Default: 0.2.")]
_Whole = Annotated[bool, typer.Option(help="With --slice, detect in the whole image as well.")]

# Options of both `train` and `compare`.
_Start = Annotated[
    str | None,
    typer.Option(help="Start from these: coco, obj365, obj2coco, imagenet (backbone only), none, or a file."),
]
_Teacher = Annotated[str | None, typer.Option(help="Teacher to distill from (see `rtdetrv4 teachers`), or none.")]
_Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
_Batch = Annotated[
    str | None,
    typer.Option(
        help="Images per optimizer step, across all devices; auto: the recipe's batch, split into parts that fit.",
        metavar="COUNT|auto",
    ),
]
_LearningRate = Annotated[float | None, typer.Option(help="Learning rate.")]
_Workers = Annotated[int | None, typer.Option(help="Number of processes that load images.")]
_Amp = Annotated[str | None, typer.Option(help="Mixed precision: auto, bf16, fp16 or off.")]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting: --set optimizer.weight_decay=1e-4", metavar="NAME=VALUE"),
]


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(rtdetrv4.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("rtdetrv4").setLevel(logging.INFO)


@app.command()
def train(
    data: Annotated[str | None, _DATA] = None,
    model: _Model = None,
    weights: _Start = None,
    teacher: _Teacher = None,
    epochs: _Epochs = None,
    batch: _Batch = None,
    imgsz: _ImageSize = None,
    lr: _LearningRate = None,
    device: _Device = None,
    workers: _Workers = None,
    cache: Annotated[str | None, typer.Option(help="Keep decoded images: ram, disk or none.")] = None,
    amp: _Amp = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for the results.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or else the latest one in runs/train.")
    ] = False,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="Overwrite the run in --out, instead of writing to a new folder beside.")
    ] = False,
    tracker: Annotated[
        str | None, typer.Option(help="Experiment tracker: tensorboard, wandb, mlflow, … or none.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole run, instead of --epochs: 30m, 2h.")] = None,
    settings: _Settings = None,
) -> int:
    """Train a detector. Settings that are not given are chosen to fit the data and the machine."""
    from rtdetrv4.config import parse_assignment
    from rtdetrv4.config.schema import RunConfig

    if resume and model is None:
        from rtdetrv4.run_folder import RunFolder

        folder = RunFolder(out) if out else RunFolder.latest(RunConfig().out)
        if not folder.recipe.is_file():
            raise ConfigError(
                f"There is no run to resume: {folder.recipe} does not exist. Name the run's folder with --out."
            )
        model, out = str(folder.recipe), str(folder.path)
    _require_data(data, model)
    overrides = dict(parse_assignment(text) for text in settings or ())
    given = _given(
        epochs=epochs,
        batch=_batch(batch),
        imgsz=_image_size(imgsz),
        teacher=teacher,
        lr=lr,
        device=_device(device),
        workers=workers,
        cache=cache,
        seed=seed,
        amp=amp,
        out=out,
        tracker=tracker,
        budget=budget,
    )
    result = _detector(model, weights).train(data, resume=resume, exist_ok=exist_ok, overrides=overrides, **given)
    if _is_main_process():
        from rtdetrv4.report import REPORT_PAGE

        if result.metrics is not None:
            _print_metrics(result.metrics)
        print(f"Weights: {result.weights}")
        if (page := result.out / REPORT_PAGE).is_file():
            print(f"Report: {page}")
    return EXIT_INCOMPLETE if result.problems else 0


@app.command()
def augment(
    data: Annotated[str, typer.Argument(help="Data set, as for train.")],
    model: _Model = None,
    weights: _Start = None,
    epochs: _Epochs = None,
    batch: _Batch = None,
    imgsz: _ImageSize = None,
    device: _Device = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole run, instead of --epochs: 30m, 2h.")] = None,
    num_images: Annotated[int, typer.Option("--images", help="Images to show.", min=1)] = 6,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.", dir_okay=False)] = Path(
        "runs/augment.jpg"
    ),
    settings: _Settings = None,
) -> None:
    """Draw training images as each stage of `train` with the same options would show them to the model."""
    from rtdetrv4.config import parse_assignment

    overrides = dict(parse_assignment(text) for text in settings or ())
    given = _given(
        epochs=epochs,
        batch=_batch(batch),
        imgsz=_image_size(imgsz),
        device=_device(device),
        seed=seed,
        budget=budget,
    )
    with _interruptible(lambda: "No picture was written."):
        path = _detector(model, weights).augment(data, num_images=num_images, out=out, overrides=overrides, **given)
    print(f"Picture: {path}")


@app.command()
def val(
    data: Annotated[str, _DATA],
    model: _Trained,
    weights: _Weights = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to evaluate.")] = "val",
    batch: Annotated[int | None, typer.Option(help="Images per batch.")] = None,
    imgsz: _ImageSize = None,
    device: _Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for report.html, metrics.json and the curves.", file_okay=False),
    ] = None,
    slice: _Slice = None,
    overlap: _Overlap = None,
    whole: _Whole = True,
) -> None:
    """Compute COCO metrics."""
    from rtdetrv4.evaluation.report import REPORT_FILES as EVALUATION_FILES
    from rtdetrv4.outputs import unused_folder
    from rtdetrv4.report import REPORT_FILES

    given = _given(batch=batch, imgsz=_image_size(imgsz), **_tiles(slice, overlap, whole))
    with _interruptible(lambda: "The evaluation is not complete; files that it has written are whole."):
        detector = _detector(model, weights, _device(device))
        out = None if out is None else unused_folder(out, (*EVALUATION_FILES, *REPORT_FILES))
        metrics = detector.val(data, split=split, **given, **_given(out=out))
    if not _is_main_process():
        return
    _print_metrics(metrics)
    if out is not None:
        print(f"Results: {out}")


@app.command()
def predict(
    source: Annotated[str, typer.Argument(help="Image, video, folder, glob pattern, or camera index.")],
    model: Annotated[str | None, _TrainedOption] = None,
    weights: _Weights = None,
    conf: Annotated[
        str,
        typer.Option(
            help="Minimum confidence; best: for each class the one that was best in its validation.",
            metavar="NUMBER|best",
        ),
    ] = "0.25",
    classes: Annotated[list[str] | None, typer.Option("--class", help="Only this class; may be repeated.")] = None,
    duplicates: Annotated[
        Literal["drop", "keep"], typer.Option(help="Second labels and nearly identical boxes of one object.")
    ] = "drop",
    imgsz: _ImageSize = None,
    batch: Annotated[int | None, typer.Option(help="Images, or tiles of them, at once. Default: 1.")] = None,
    slice: _Slice = None,
    overlap: _Overlap = None,
    whole: _Whole = True,
    device: _Device = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for annotated pictures and predictions.jsonl.")
    ] = Path("runs/predict"),
) -> None:
    """Detect objects in images and videos, with COCO weights of rtdetrv4-s unless a model is named.

    An exported .onnx file needs no torch.
    """
    from rtdetrv4.runtime import PredictionFolder

    results = PredictionFolder(out)  # a folder that cannot be is known before weights are fetched
    given = _given(classes=classes, batch=batch, **_tiles(slice, overlap, whole))
    options = {"conf": _confidence(conf), "duplicates": duplicates, **given}
    with _interruptible(lambda: f"Complete: {results}."):
        for detections in _predictions(model, weights, source, _image_size(imgsz), _device(device), options):
            picture = results.add(detections)
            counts = Counter(detections.class_name).most_common()
            print(f"{picture}: {', '.join(f'{count} {label}' for label, count in counts) or 'nothing'}")
    print(f"Results: {results.path}")


@app.command()
def export(
    model: _Trained,
    weights: _Weights = None,
    format: Annotated[str, typer.Option("--format", "-f", help="File format: onnx.")] = "onnx",
    out: Annotated[str | None, typer.Option("--out", "-o", help="File to write; default: beside the weights.")] = None,
    imgsz: _ImageSize = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.")] = None,
    dynamic: Annotated[bool, typer.Option(help="Accept any batch size, not only 1.")] = True,
    device: _Device = None,
) -> None:
    """Export for other runtimes, and check the file against PyTorch."""
    given = _given(out=out, imgsz=_image_size(imgsz), opset=opset)
    with _interruptible(lambda: "The export was not finished, and no file was replaced."):
        path = _detector(model, weights, _device(device)).export(format, dynamic=dynamic, **given)
    print(f"Exported: {path}")


@app.command()
def doctor(
    data: Annotated[
        str,
        typer.Argument(
            help="Data set: a folder (COCO, YOLO, Pascal VOC, LabelMe, CVAT), or a YAML, COCO or CVAT file."
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for an info, too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for doctor.html, a page with pictures, and doctor.json."),
    ] = None,
    fix: Annotated[
        str | None, typer.Option(help="New folder for a repaired copy, in COCO format; the data set stays as it is.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Weights, to look for wrong labels with a trained model.")
    ] = None,
    weights: _Weights = None,
    imgsz: Annotated[
        str | None, typer.Option(help="Image size to train at, by which small boxes are judged: 640, or 480x640.")
    ] = None,
    device: _Device = None,
) -> int:
    """Find what is wrong with a data set, and say what training does about it and what to do.

    Exits with 0 if there is nothing worse than an info, 1 if there is, 2 if there is no data set.
    """
    from rtdetrv4.doctor import examine, found_in, inspect, suspected, write_pages, write_repaired_copy
    from rtdetrv4.doctor.inspection import INPUT_HW
    from rtdetrv4.doctor.page import check_folder
    from rtdetrv4.doctor.repair import check_destination

    if fix is not None:
        check_destination(fix, data)
    if out is not None:
        check_folder(out)
    size_hw, detector = _image_size(imgsz), None
    if model is not None:
        detector = _detector(model, weights, _device(device))
        size_hw = size_hw or detector.recipe.model.image_size
    elif weights or device:
        raise ConfigError("--weights and --device say how to look for wrong labels; give --model, too.")
    with _interruptible(lambda: "Nothing was changed."):
        inspection = inspect(data)._replace(input_hw=size_hw or INPUT_HW)
        doubts = () if detector is None else suspected(inspection, partial(detector.detections_in, imgsz=size_hw))
        findings = examine(inspection, doubts)
        if json:
            print(findings.to_json())
        else:
            _print_findings(findings)
        if out is not None:
            write_pages(out, findings, inspection)
        if fix is not None:
            write_repaired_copy(inspection, found_in(inspection), fix)
    return findings.exit_code(strict=strict)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A released .pth, a transformers folder, or weights of this package.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, or folder for transformers.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model, if the tensors fit several.")] = None,
    to: Annotated[Literal["ours", "released", "transformers"], typer.Option(help="Format to write.")] = "ours",
) -> None:
    """Convert weights to this package's format, the released code's, or transformers'."""
    from rtdetrv4.assembly.conversion import convert_weights

    found = convert_weights(source, out, model=model, to=to)
    print(f"{found.model} with {found.num_classes} classes: {out}")


@app.command()
def compare(
    data: Annotated[str | None, _DATA] = None,
    model: _Model = None,
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help="Arms to compare, the reference first: off, fixed, gam, gam_paper, auto. Default: off,fixed,gam.",
            metavar="NAME,NAME",
            show_default=False,
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm", help="An arm of your own: --arm strong:distillation.weight=20", metavar="NAME:SETTING=VALUE,…"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs per arm, with seeds 0, 1, 2, …", min=1)] = 3,
    seed_list: Annotated[str | None, typer.Option(help="Use these seeds instead: 0,2,5.", metavar="N,N")] = None,
    weights: _Start = None,
    teacher: _Teacher = None,
    epochs: _Epochs = None,
    batch: _Batch = None,
    imgsz: _ImageSize = None,
    lr: _LearningRate = None,
    device: _Device = None,
    workers: _Workers = None,
    amp: _Amp = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all runs and the table.")] = Path("runs/compare"),
    report: Annotated[bool, typer.Option("--report", help="Only report on the finished runs in --out.")] = False,
    settings: _Settings = None,
) -> None:
    """Train several variants with several seeds, and show their differences with confidence intervals."""
    names = [*(arms.split(",") if arms else ()), *(arm or ())]
    chosen = _seeds(seed_list) or seeds
    if report:
        from rtdetrv4.comparison import read_comparison

        comparison = read_comparison(out, [name.strip() for name in names] or None)
    else:
        _require_data(data, model)
        from rtdetrv4.comparison import compare as run_comparison
        from rtdetrv4.config import parse_assignment

        given = _given(
            arms=names or None,
            epochs=epochs,
            batch=_batch(batch),
            imgsz=_image_size(imgsz),
            teacher=teacher,
            lr=lr,
            device=_device(device),
            workers=workers,
            amp=amp,
            weights=weights,
        )
        overrides = dict(parse_assignment(text) for text in settings or ())
        comparison = run_comparison(data, model, seeds=chosen, out=out, overrides=overrides, **given)
    _print_comparison(comparison)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, of `val --out` or of a comparison.", metavar="RUN")],
) -> None:
    """Write report.html and report.json again, from what a folder holds."""
    from rtdetrv4.comparison.summary import SETTINGS_FILE, read_comparison
    from rtdetrv4.report import REPORT_PAGE, write_report

    with _interruptible(lambda: "Files that were written are whole."):
        if (folder / SETTINGS_FILE).is_file():
            page = read_comparison(folder).out / REPORT_PAGE
        else:
            page = write_report(folder)
    print(f"Report: {page}")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Print this model's recipe instead.")] = None,
) -> None:
    """List the models, or print a model's recipe as YAML."""
    from rtdetrv4.config import VARIANTS, load_recipe, to_yaml

    if name is not None:
        print(to_yaml(load_recipe(name)), end="")
        return

    from rich.console import Console
    from rich.table import Table

    from rtdetrv4.weights.catalog import HUB_FILES, Dataset

    table = Table(
        title="Models",
        box=None,
        pad_edge=False,
        caption="coco, obj2coco, obj365: weights that can be fetched by name, with their AP on COCO val2017 as "
        "published for that file (✓: none was). ms: latency as published, on a T4 with TensorRT FP16. Nothing here was "
        "measured by us.",
        caption_justify="left",
    )
    table.add_column("model", style="bold", no_wrap=True)
    table.add_column("backbone", no_wrap=True)
    for column in ("params", "ms", *get_args(Dataset)):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("license", no_wrap=True)
    for name, variant in VARIANTS.items():
        if variant.num_parameters is None:  # the model for tests
            continue
        first = {dataset: files[0] for dataset, files in HUB_FILES.get(name, {}).items()}
        table.add_row(
            name,
            variant.backbone,
            f"{variant.num_parameters / 1e6:.1f} M",
            "" if variant.latency_ms is None else f"{variant.latency_ms:.2f}",
            *(
                "" if dataset not in first else "✓" if first[dataset].ap is None else f"{first[dataset].ap:.1f}"
                for dataset in get_args(Dataset)
            ),
            ", ".join(sorted({file.license or "unknown" for file in first.values()})),
        )
    Console().print(table)


@app.command()
def teachers() -> None:
    """List the named teachers, with the licenses of their weights. Any other timm model works too."""
    from rich.console import Console
    from rich.table import Table

    from rtdetrv4.distillation.teacher_catalog import TEACHERS

    console = Console()
    is_wide = console.width >= WIDE
    table = Table(
        title="Teachers",
        box=None,
        pad_edge=False,
        caption="* not an open-source license: read it before you train. Licenses are those that timm states. Any "
        "other timm model can be a teacher too, by its timm name.",
        caption_justify="left",
    )
    table.add_column("teacher", style="bold", no_wrap=True)
    for column in ("channels", "stride"):
        table.add_column(column, justify="right")
    table.add_column("license", no_wrap=True)
    if is_wide:
        table.add_column("name in timm", no_wrap=True)
        table.add_column("note")
    family, names_of = TEACHERS[0].family, dict[str, list[str]]()
    for facts in TEACHERS:
        if facts.family != family:
            table.add_section()
            family = facts.family
        terms = facts.license if facts.is_open else f"{facts.license} *"
        more = (facts.timm_name, facts.note) if is_wide else ()
        table.add_row(facts.name, str(facts.dim), str(facts.stride), terms, *more)
        names_of.setdefault(facts.note, []).append(facts.name)
    console.print(table)
    for note, names in () if is_wide else names_of.items():
        if note:
            console.print(f"\n[bold]{', '.join(names)}[/]: {note}", highlight=False)
    if not is_wide:
        console.print(f"\nFrom {WIDE} columns on, a terminal shows the names in timm, too.", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("runs/demo"),
) -> None:
    """Train, evaluate and export a small detector on synthetic shapes."""
    from rtdetrv4.demo import run_demo

    run_demo(out, print)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the arguments; None: those of the process.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 if interrupted, or 1 if only the report on a training failed or
        `doctor` found something.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that are not UTF-8
    args = list(sys.argv[1:] if args is None else args)
    command = next((arg for arg in args if not arg.startswith("-")), "")
    try:
        code = app(args, prog_name="rtdetrv4", standalone_mode=False)
    except _UsageError as error:
        return _mistake(_usage_message(error))
    except RTDETRError as error:
        return _mistake(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "rtdetrv4").partition(".")[0]
        if package == "rtdetrv4":
            raise
        extra = _EXTRAS.get(command, "torch")
        return _mistake(f'{package} is not installed; install it with: pip install "rtdetrv4[{extra}]"')
    except OSError as error:
        if error.filename is None:
            raise
        return _mistake(f"{error.filename}: {error.strerror}")
    return code if isinstance(code, int) else 0


def _mistake(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_MISTAKE


def _usage_message(error: Any) -> str:
    possibilities = getattr(error, "possibilities", None)
    if possibilities:
        return f'{error.message}. Did you mean "{possibilities[0]}"?'
    message = error.format_message()
    if re.search(r"unexpected extra argument.*=", message):
        return f'{message}. Options are written "--epochs 50", other settings "--set name=value".'
    return message


def _require_data(data: str | None, model: str | None) -> None:
    if data is None and (model is None or Path(model).suffix not in (".yaml", ".yml")):
        raise ConfigError("Missing option --data: a folder with a COCO, YOLO, Pascal VOC, LabelMe or CVAT data set.")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the rest keep `Detector`'s defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _image_size(text: str | None) -> tuple[int, int] | None:
    from rtdetrv4.config.schema import parse_image_size

    try:
        return None if text is None else parse_image_size(text)
    except ValueError as error:
        raise ConfigError(f'--imgsz: got "{text}", {error}.') from None


def _batch(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or text == "0":
        raise ConfigError(f'--batch: got "{text}", expected a number of images or auto.')
    return int(text)


def _confidence(text: str) -> float | str:
    try:
        value = text if text == "best" else float(text)
    except ValueError:
        value = -1.0
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ConfigError(f'--conf: got "{text}", expected a number from 0 to 1, or best.')
    return value


def _tiles(slice: str | None, overlap: float | None, whole: bool) -> dict[str, Any]:
    from rtdetrv4.runtime.slicing import Slicing

    if slice is None and (overlap is not None or not whole):
        raise ConfigError("--overlap and --no-whole belong to tiles; give their size, such as --slice 640.")
    Slicing.of(slice, **_given(overlap=overlap))  # before weights are read
    return _given(slice=slice, overlap=overlap, whole=None if whole else False)


def _device(text: str | None) -> str | None:
    from rtdetrv4.config.schema import parse_device

    try:
        return None if text is None else parse_device(text)
    except ValueError as error:
        raise ConfigError(f'--device: got "{text}", {error}.') from None


def _detector(model: str | None, weights: str | None = None, device: str | None = None) -> Detector:
    import torch  # noqa: F401 - without it, `main` names the extra of the command, which may be more than Detector's

    return rtdetrv4.Detector(**_given(model=model, weights=weights, device=device))


def _seeds(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f'--seed-list: got "{text}", expected numbers such as 0,2,5.') from None


def _predictions(
    model: str | None,
    weights: str | None,
    source: str,
    imgsz: tuple[int, int] | None,
    device: str | None,
    options: dict[str, Any],
) -> Iterable[Detections]:
    if model is None or Path(model).suffix != ".onnx":
        return _detector(model, weights, device).predict(source, stream=True, **_given(imgsz=imgsz), **options)
    if imgsz or device or weights:
        raise ConfigError("--imgsz, --device and --weights do not apply to an exported model: its image size is fixed.")
    return rtdetrv4.ExportedDetector(model).predict(source, stream=True, **options)


@contextmanager
def _interruptible(what_remains: Callable[[], str]) -> Iterator[None]:
    """Make Ctrl-C say what remains of the work inside."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or what_remains()) from None


def _is_main_process() -> bool:
    """Whether this is the first of the processes that run one command together, as under torchrun."""
    from accelerate import PartialState

    return PartialState().is_main_process


def _print_metrics(metrics: Metrics) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("metric", "value")
    numbers = metrics.to_dict()
    for name, value in numbers.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
    for label, value in numbers["per_class"].items():
        # Text, because brackets in a class name are not markup.
        table.add_row(Text(f"ap of {label}"), "" if value is None else f"{value:.4f}")
    Console().print(table)


def _print_findings(findings: Findings) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console()

    def show(text: str, style: str = "") -> None:
        # Names of files that are not UTF-8 hold what no terminal can show.
        console.print(Text(text.encode(errors="backslashreplace").decode(), style), soft_wrap=True)

    for note in findings.notes:
        show(note)
    if findings.parts:
        table = Table("part", *(Column(name, justify="right") for name in ("images", "boxes", "classes")), box=None)
        for name, counts in findings.parts.items():
            table.add_row(name, *map(str, counts))
        console.print(table)
    styles = {"error": "bold red", "warning": "yellow", "info": "dim"}
    table = Table("code", "", Column("count", justify="right"), "finding", box=None)
    for finding in findings.findings:
        severity = Text(finding.severity, styles[finding.severity])
        table.add_row(finding.code, severity, str(finding.count), finding.title)
    for finding in findings.findings:
        show(f"\n{finding.code} {finding.title} ({finding.count})", styles[finding.severity])
        show(f"  Training: {finding.effect}")
        show(f"  To do: {finding.remedy}")
        for example in finding.examples[:NUM_EXAMPLES]:
            line = "" if example.line is None else f":{example.line}"
            part = f"[{example.part}] " if example.part else ""
            show(f"    {part}{example.file}{line}  {example.detail}")
        if finding.count > NUM_EXAMPLES:
            show(f"    and {finding.count - NUM_EXAMPLES} more")
    if findings.findings:
        console.print()
        console.print(table)
    else:
        show("Nothing found.")


def _print_comparison(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for each in comparison.tables:
        table = Table(title=each.title, caption=each.note, title_justify="left", caption_justify="left")
        for index, name in enumerate(each.header):
            table.add_column(name, justify="right" if index and name else "left")
        for row in each.rows:
            table.add_row(*map(Text, row))
        Console().print(table)
    if comparison.unfinished:
        print(f"Unfinished and left out: {', '.join(comparison.unfinished)}")
    print(f"Results: {comparison.out / 'report.html'}, compare.md, compare.json and compare.png beside it")


if __name__ == "__main__":
    sys.exit(main())
