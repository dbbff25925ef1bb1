"""`rtdetrv4 train`, `val`, `predict`, `export`, `verify` and the other commands that `rtdetrv4 --help` lists.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
import typer.core

import rtdetrv4
from rtdetrv4.errors import ConfigError, ExportError, RTDETRError, first_line, require

if TYPE_CHECKING:
    from rtdetrv4 import Detector
    from rtdetrv4.benchmark import Benchmark
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
    "pretrain": "train",
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
    "--model", "-m", help="Weights (.safetensors), a model by name (see `rtdetrv4 models`), or an exported file."
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
_RuntimeDevice = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1 (or 1), mps; for exported files in the words of their runtime."),
]

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

    if not resume:
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
    )
    _check_settings(model, weights, given | overrides, budget, resume=resume)
    if resume and model is None:
        from rtdetrv4.run_folder import RunFolder

        folder = RunFolder(out) if out else RunFolder.latest(RunConfig().out)
        if not folder.recipe.is_file():
            raise ConfigError(
                f"There is no run to resume: {folder.recipe} does not exist. Name the run's folder with --out."
            )
        model, given["out"] = str(folder.recipe), str(folder.path)
    given |= _given(budget=budget)
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
def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Folder of images, or a data set whose labels to ignore; may be repeated."),
    ] = None,
    model: _Model = None,
    weights: _Start = None,
    teacher: _Teacher = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
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
        bool, typer.Option("--resume", help="Resume the run in --out, or else the latest one in runs/pretrain.")
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
    """Have backbone and encoder learn from a teacher on images without labels, before `train --weights`."""
    from rtdetrv4.config import parse_assignment

    overrides = dict(parse_assignment(text) for text in settings or ())
    if not (resume or data or "data.unlabeled" in overrides or (model or "").endswith((".yaml", ".yml"))):
        raise ConfigError("Missing option --data: a folder of images, or a data set whose labels to ignore.")
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
    )
    _check_settings(model, weights, given | overrides, budget, resume=resume)
    if resume and model is None:
        from rtdetrv4.run_folder import RunFolder

        folder = RunFolder(out) if out else RunFolder.latest("runs/pretrain")
        if not folder.recipe.is_file():
            raise ConfigError(
                f"There is no run to resume: {folder.recipe} does not exist. Name the run's folder with --out."
            )
        model, given["out"] = str(folder.recipe), str(folder.path)
    given |= _given(budget=budget)
    detector = _detector(model, weights)
    result = detector.pretrain(data or None, resume=resume, exist_ok=exist_ok, overrides=overrides, **given)
    if _is_main_process():
        if result.loss is not None:
            print(f"L_DSI: {result.loss:.3f}")
        print(f"Weights: {result.weights}")
        print(f"Next: rtdetrv4 train --data DATA --weights {result.weights}")
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
    )
    _check_settings(model, weights, given | overrides, budget)
    given |= _given(budget=budget)
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
    device: _RuntimeDevice = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for report.html, metrics.json and the curves.", file_okay=False),
    ] = None,
    slice: _Slice = None,
    overlap: _Overlap = None,
    whole: _Whole = True,
) -> None:
    """Compute COCO metrics."""
    given = _given(batch=batch, imgsz=_image_size(imgsz), **_tiles(slice, overlap, whole))
    if out is not None:
        for module in ("jinja2", "matplotlib"):
            require(module, "eval")

    from rtdetrv4.runtime.engines import is_exported

    with _interruptible(lambda: "The evaluation is not complete; files that it has written are whole."):
        detector = _detector(model, weights, device)
        if out is not None:
            from rtdetrv4.evaluation.report import REPORT_FILES as EVALUATION_FILES
            from rtdetrv4.outputs import unused_folder
            from rtdetrv4.report import REPORT_FILES

            given["out"] = out = unused_folder(out, (*EVALUATION_FILES, *REPORT_FILES))
        metrics = detector.val(data, split=split, **given)
    if not (is_exported(model) or _is_main_process()):
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
    device: _RuntimeDevice = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for annotated pictures and predictions.jsonl.")
    ] = Path("runs/predict"),
) -> None:
    """Detect objects in images and videos, with COCO weights of rtdetrv4-s unless a model is named.

    An exported file, such as weights.onnx, needs no torch.
    """
    options = {"conf": _confidence(conf), "duplicates": duplicates, **_given(classes=classes, batch=batch)}
    size_hw = _image_size(imgsz)
    options |= _tiles(slice, overlap, whole)

    from rtdetrv4.runtime import PredictionFolder

    results = PredictionFolder(out)  # a folder that cannot be is known before weights are fetched
    with _interruptible(lambda: f"Complete: {results}."):
        detector = _detector(model, weights, device)
        for detections in detector.predict(source, stream=True, **_given(imgsz=size_hw), **options):
            picture = results.add(detections)
            counts = Counter(detections.class_name).most_common()
            print(f"{picture}: {', '.join(f'{count} {label}' for label, count in counts) or 'nothing'}")
    print(f"Results: {results.path}")


@app.command()
def export(
    model: Annotated[str | None, typer.Argument(help="Weights (.safetensors), or a model by name.")] = None,
    trained: Annotated[str | None, typer.Option("--model", "-m", help="The same as MODEL.")] = None,
    weights: _Weights = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="onnx, openvino, torchscript, pt2, executorch or tensorrt; several with commas between.",
        ),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None,
        typer.Option("--precision", "-p", help="In what the network computes. Default: fp32."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="File to write, or the name of several without an ending; default: beside the weights."
        ),
    ] = None,
    imgsz: _ImageSize = None,
    batch: Annotated[int | None, typer.Option(help="The only batch size to accept. Default: any.", min=1)] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.")] = None,
    postprocess: Annotated[
        bool, typer.Option("--postprocess/--raw", help="Return detections, or logits and boxes of all queries.")
    ] = True,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Detections per image. Default: 300.", min=1)] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="Take frames, B×H×W×3 uint8, instead of B×3×H×W in [0, 1].")
    ] = False,
    grid_sample: Annotated[bool, typer.Option(help="Sample with GridSample; some runtimes get it wrong.")] = True,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Return only this class; may be repeated.")
    ] = None,
    duplicates: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(help="Whether the graph drops second labels and nearly identical boxes. Default: keep."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Data set to measure the AP on; int8 needs it.")
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Split to measure the AP on. Default: val.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of AP that another precision than fp32 may cost. Default: 0.5.")
    ] = None,
    device: _Device = None,
) -> None:
    """Export for other runtimes, and prove in each that it computes what PyTorch computes."""
    if model is not None and trained is not None:
        raise ConfigError(f'Got two models, "{model}" and --model "{trained}". Give only one.')
    if (model or trained) is None:
        raise ConfigError("Missing argument MODEL: weights (.safetensors), or a model by name.")
    formats = format.split(",")
    given = _given(
        precision=precision,
        out=out,
        imgsz=_image_size(imgsz),
        batch=batch,
        opset=opset,
        num_top=top_k,
        classes=classes,
        duplicates=duplicates,
        data=data,
        split=split,
        max_drop=max_drop,
        postprocess=None if postprocess else False,
        frames=frames or None,
        grid_sample=None if grid_sample else False,
    )
    with _interruptible(lambda: "The export was not finished; no file was replaced that had not passed its check."):
        written = _detector(model or trained, weights, device).export(
            formats[0] if len(formats) == 1 else formats, **given
        )
    for path in written if isinstance(written, list) else [written]:
        _print_proof(path)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Exported file or folder, with its .report.json beside it.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Data set to measure the AP on.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to measure the AP on.")] = "val",
    max_drop: Annotated[float, typer.Option(help="Points of AP that may be lost to PyTorch.")] = 0.5,
    device: Annotated[
        str | None, typer.Option(help="What to run it on, in the words of its runtime: cpu, gpu, …")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that work on one image.", min=1)] = None,
) -> None:
    """Check on this machine that an exported file finds what PyTorch found. Needs no torch."""
    from rtdetrv4.runtime.export_report import Accuracy
    from rtdetrv4.runtime.proof import proven_precision, verify_file

    found = verify_file(file, device=device, threads=threads)
    report, share = found.report, found.matched.share
    print(f"{file} in {found.runtime}")
    if share is not None:
        print(f"  {100 * share:.1f} % of {found.matched.num_confident} confident detections as in PyTorch")
    print(
        f"  {found.latency.median_ms:.4g} ms per batch of {found.latency.batch}, 90 % within {found.latency.p90_ms:.4g}"
    )
    if data is None:
        return
    with _interruptible(lambda: "Nothing was changed."):
        precision = proven_precision(report.precision)
        exported = rtdetrv4.ExportedDetector(file, device=device, threads=threads, precision=precision)
        metrics = exported.val(data, split=split)
    known = report.accuracy
    if known is None:
        print(f"  AP {metrics.ap:.3f}; it was exported without data, so there is no AP of PyTorch to compare with")
        return
    now = Accuracy(data, split, metrics.num_images, metrics.ap, metrics.ap50, known.torch_ap, known.torch_ap50)
    print(
        f"  AP {now.ap:.3f}; when it was exported {known.ap:.3f}, and in PyTorch {known.torch_ap:.3f} on {known.data}"
    )
    if now.drop > max_drop:
        raise ExportError(
            f"{file} loses {now.drop:.2f} points of AP to PyTorch on this machine, and --max-drop is {max_drop:g}. Is "
            f"{data} the same data as {known.data}?"
        )


def _print_proof(path: Path) -> None:
    """Say what was written, and what of its report the user has to know."""
    from rtdetrv4.runtime.export_report import ExportReport, report_path

    print(f"Exported: {path}")
    file = report_path(path)
    if not file.is_file():
        return
    report = ExportReport.read(file)
    latency, in_torch = report.latency, report.torch_latency
    size = f"{report.size_bytes / 1e6:.1f} MB"
    print(f"  {size}, {latency.median_ms:.4g} ms per batch of {latency.batch}, in PyTorch {in_torch.median_ms:.4g} ms")
    for note in report.notes:
        print(f"  {note}")


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="Exported files and folders; .onnx and .xml files of other programs.")
    ],
    batch: Annotated[str, typer.Option(help="Images per run: 1, or several numbers: 1,8.", metavar="N,N")] = "1",
    threads: Annotated[
        str | None, typer.Option(help="Threads per run: 2, or 1,2. Default: as the runtime chooses.", metavar="N,N")
    ] = None,
    imgsz: Annotated[
        str | None,
        typer.Option(help="Sizes for models of other programs that take any: 640,480x640.", metavar="SIZE,SIZE"),
    ] = None,
    hint: Annotated[
        str, typer.Option(help="latency, throughput (several runs at once, in OpenVINO), or both.", metavar="HINT,HINT")
    ] = "latency",
    runtime: Annotated[
        str | None,
        typer.Option(help="What to run .onnx files with: onnxruntime, openvino, or both.", metavar="NAME,NAME"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="What OpenVINO computes in: fp32, bf16, or both.", metavar="NAME,NAME")
    ] = None,
    device: _RuntimeDevice = None,
    seconds: Annotated[float, typer.Option(help="Time for each row of the table.")] = 3.0,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Data set to measure the AP on; else it is that of the export.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split of --data.")] = "val",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for bench.json and bench.png, AP against latency.", file_okay=False),
    ] = None,
) -> None:
    """Time exported models side by side: latency and throughput, with what surrounds the network apart."""
    from rtdetrv4.benchmark import BENCHMARK_FILES, draw_benchmark, run_benchmark
    from rtdetrv4.outputs import unused_folder, write_text

    sizes = [] if imgsz is None else [_image_size(part) for part in imgsz.split(",")]
    given = _given(
        batches=_numbers("--batch", batch),
        threads=None if threads is None else _numbers("--threads", threads),
        image_sizes=[size for size in sizes if size is not None],
        hints=_words("--hint", hint, ("latency", "throughput")),
        runtimes=None if runtime is None else _words("--runtime", runtime, ("onnxruntime", "openvino")),
        precisions=None if precision is None else _words("--precision", precision, ("fp32", "bf16")),
    )
    if out is not None:
        require("matplotlib", "eval")  # now, and not after the measurement
        out = unused_folder(out, BENCHMARK_FILES)
    with _interruptible(lambda: "Nothing was written."):
        found = run_benchmark(models, device=device, seconds=seconds, data=data, split=split, **given)
    if json:
        print(found.to_json(), end="")
    else:
        _print_benchmark(found)
    if out is not None:
        write_text(out / BENCHMARK_FILES[0], found.to_json())
        is_drawn = draw_benchmark(found, out / BENCHMARK_FILES[1])
        if not json:
            print(f"Results: {out}" if is_drawn else f"Results: {out}, without a picture, because no AP is known")


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
        from rtdetrv4.runtime.engines import is_exported

        if is_exported(model):
            raise ConfigError(f"{model} is an exported model; the doctor looks for wrong labels with weights.")
        detector = _detector(model, weights, device)
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
        from rtdetrv4.config import parse_assignment

        given = _given(
            epochs=epochs,
            batch=_batch(batch),
            imgsz=_image_size(imgsz),
            teacher=teacher,
            lr=lr,
            device=_device(device),
            workers=workers,
            amp=amp,
        )
        overrides = dict(parse_assignment(text) for text in settings or ())
        _check_settings(model, weights, given | overrides, None)
        given |= _given(arms=names or None, weights=weights)
        from rtdetrv4.comparison import compare as run_comparison

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
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        cause = first_line(error).partition(" GPU ")[0]  # which begins an account of all its memory
        return _mistake(f"out of memory ({cause}). Use a smaller batch or image size, or close other programs.")
    return code if isinstance(code, int) else 0


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from rtdetrv4.ops.device import is_out_of_memory

    return is_out_of_memory(error)


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


def _check_settings(
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


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given; the rest keep `Detector`'s defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    from rtdetrv4.config.schema import parse_image_size

    try:
        return parse_image_size(text)
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
    if slice is None and (overlap is not None or not whole):
        raise ConfigError("--overlap and --no-whole belong to tiles; give their size, such as --slice 640.")
    if slice is not None:
        from rtdetrv4.runtime.slicing import Slicing

        Slicing.of(slice, **_given(overlap=overlap))  # before weights are read
    return _given(slice=slice, overlap=overlap, whole=None if whole else False)


def _device(text: str | None) -> str | None:
    if text is None:
        return None
    from rtdetrv4.config.schema import parse_device

    try:
        return parse_device(text)
    except ValueError as error:
        raise ConfigError(f'--device: got "{text}", {error}.') from None


def _detector(model: str | None, weights: str | None = None, device: str | None = None) -> Detector:
    from rtdetrv4.runtime.engines import is_exported

    if model is None or not is_exported(model):  # else the runtime has its own words for devices
        device = _device(device)
        import torch  # noqa: F401 - without it, `main` names the extra of the command: maybe more than Detector's

    return rtdetrv4.Detector(**_given(model=model, weights=weights, device=device))


def _seeds(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f'--seed-list: got "{text}", expected numbers such as 0,2,5.') from None


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

    numbers = metrics.to_dict()
    if numbers["ap"] is None:
        print("There is nothing to measure: the images have no objects.")
        return
    table = Table("metric", "value")
    for name, value in numbers.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
    for label, value in numbers["per_class"].items():
        # Text, because brackets in a class name are not markup.
        table.add_row(Text(f"ap of {label}"), "" if value is None else f"{value:.4f}")
    Console().print(table)


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f'{option}: got "{text}", expected a number, 1 or more, or several such as 1,8.')
    return list(dict.fromkeys(int(part) for part in parts))


def _words(option: str, text: str, known: Sequence[str]) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not set(parts) <= set(known):
        raise ConfigError(f'{option}: got "{text}", expected {" or ".join(known)}, or both with a comma between.')
    return list(dict.fromkeys(parts))


def _print_benchmark(benchmark: Benchmark) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    def number(value: float | None, factor: float = 1.0) -> str:
        return "" if value is None else f"{factor * value:.3g}" if factor * value < 100 else f"{factor * value:.0f}"

    rows = benchmark.rows
    columns = {
        "batch": [str(row.batch) for row in rows],
        "threads": [str(row.threads or "") for row in rows],
        "at once": ["" if row.num_parallel == 1 else str(row.num_parallel) for row in rows],
        "ms": [number(row.median_ms) for row in rows],
        "p95": [number(row.p95_ms) for row in rows],
        "images/s": [number(row.images_per_second) for row in rows],
        "before": [number(row.preprocess_ms) for row in rows],
        "after": [number(row.postprocess_ms) for row in rows],
        "AP": [number(row.ap, 100) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(
        Column("model", overflow="fold"),
        Column("runtime", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in columns),
        title=benchmark.machine,
        caption="ms: median of a batch in the network alone. before: from 1280×720 frames to its input, in ms; after: "
        "from its outputs to detections.",
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    sizes = {row.image_size for row in rows}
    for row, *cells in zip(rows, *columns.values(), strict=True):
        size = f" {row.image_size[0]}×{row.image_size[1]}" if len(sizes) > 1 else ""
        table.add_row(Text(f"{row.file}{size}"), row.runtime, *cells)  # brackets in a name are not markup
    Console().print(table)
    for note in benchmark.notes:
        print(f"Left out: {note}")


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
