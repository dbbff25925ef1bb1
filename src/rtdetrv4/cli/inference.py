"""`val` and `predict`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rtdetrv4.cli.options import (
    DATA,
    TRAINED,
    ImageSize,
    Overlap,
    RuntimeDevice,
    RuntimePrecision,
    Slice,
    Trained,
    Weights,
    Whole,
    confidence_of,
    given_options,
    image_size_of,
    tiles_of,
)
from rtdetrv4.cli.running import detector_of, interruptible, is_main_process
from rtdetrv4.cli.tables import print_metrics
from rtdetrv4.errors import ConfigError, require


def val(
    data: Annotated[str, DATA],
    model: Trained,
    weights: Weights = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to evaluate.")] = "val",
    batch: Annotated[int | None, typer.Option(help="Images per batch.")] = None,
    imgsz: ImageSize = None,
    device: RuntimeDevice = None,
    precision: RuntimePrecision = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for report.html, metrics.json and the curves.", file_okay=False),
    ] = None,
    slice: Slice = None,
    overlap: Overlap = None,
    whole: Whole = True,
) -> None:
    """Compute COCO metrics."""
    given = given_options(batch=batch, imgsz=image_size_of(imgsz), **tiles_of(slice, overlap, whole))
    if out is not None:
        for module in ("jinja2", "matplotlib"):
            require(module, "eval")

    from rtdetrv4.runtime.engines import is_exported

    with interruptible(lambda: "The evaluation is not complete; files that it has written are whole."):
        detector = detector_of(model, weights, device, precision)
        if out is not None:
            from rtdetrv4.evaluation.report import REPORT_FILES as EVALUATION_FILES
            from rtdetrv4.outputs import unused_folder
            from rtdetrv4.report import REPORT_FILES

            given["out"] = out = unused_folder(out, (*EVALUATION_FILES, *REPORT_FILES))
        metrics = detector.val(data, split=split, **given)
    if not (is_exported(model) or is_main_process()):
        return
    print_metrics(metrics)
    if out is not None:
        print(f"Results: {out}")


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Images, videos, folders, glob patterns, URLs of images or streams, camera numbers, a .streams file "
            "with a source in each line, or - for a pipe.",
        ),
    ],
    model: Annotated[str | None, TRAINED] = None,
    weights: Weights = None,
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
    imgsz: ImageSize = None,
    batch: Annotated[int | None, typer.Option(help="Images, or tiles of them, at once. Default: 1.")] = None,
    slice: Slice = None,
    overlap: Overlap = None,
    whole: Whole = True,
    every: Annotated[int | None, typer.Option(help="Look at each of so many images of videos and streams.")] = None,
    latest: Annotated[
        bool, typer.Option("--latest", help="Of cameras and streams, look at the newest image only; files lose none.")
    ] = False,
    reconnect: Annotated[
        int | None,
        typer.Option(help="Tries to open a stream again, each time it drops; 0: its end is the end. Default: 20."),
    ] = None,
    stdin_format: Annotated[
        str | None,
        typer.Option(help="What comes through the pipe. Default: mjpeg.", metavar="mjpeg|rgb24:WIDTHxHEIGHT"),
    ] = None,
    device: RuntimeDevice = None,
    precision: RuntimePrecision = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for annotated pictures and predictions.jsonl.")
    ] = Path("runs/predict"),
) -> None:
    """Detect objects in images and videos, with COCO weights of rtdetrv4-s unless a model is named.

    An exported file, such as weights.onnx, needs no torch.
    """
    options = {"conf": confidence_of(conf), "duplicates": duplicates, **given_options(classes=classes, batch=batch)}
    size_hw = image_size_of(imgsz)
    options |= tiles_of(slice, overlap, whole)
    options |= given_options(every=every, latest=latest or None, reconnect=reconnect)

    from rtdetrv4.runtime import PredictionFolder

    source = _source_of(sources, stdin_format)

    results = PredictionFolder(out)  # a folder that cannot be is known before weights are fetched
    with interruptible(lambda: f"Complete: {results}."):
        detector = detector_of(model, weights, device, precision)
        for detections in detector.predict(source, stream=True, **given_options(imgsz=size_hw), **options):
            picture = results.add(detections)
            counts = Counter(detections.class_name).most_common()
            print(f"{picture}: {', '.join(f'{count} {label}' for label, count in counts) or 'nothing'}")
    print(f"Results: {results.path}")


def _source_of(sources: list[str], stdin_format: str | None) -> Any:
    """What the command names, as `read_source` takes it."""
    if "-" not in sources:
        if stdin_format is not None:
            raise ConfigError(f"--stdin-format belongs to the source -; got {', '.join(sources)}.")
        return sources[0] if len(sources) == 1 else sources
    if len(sources) > 1:
        raise ConfigError("The source - is read alone; leave the others out.")
    from rtdetrv4.runtime import Pipe, PipeFormat

    return Pipe.stdin(PipeFormat.parse(stdin_format or "mjpeg"))
