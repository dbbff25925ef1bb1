"""`val` and `predict`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    Trust,
    Weights,
    Whole,
    confidence_of,
    given_options,
    image_size_of,
    tiles_of,
)
from rtdetrv4.cli.running import detector_of, interruptible, is_main_process
from rtdetrv4.cli.tables import print_metrics
from rtdetrv4.errors import ConfigError, one_line, require

if TYPE_CHECKING:
    from rtdetrv4.runtime import Detections
    from rtdetrv4.runtime.delivery import Mqtt, Webhook
    from rtdetrv4.runtime.regions import Counting


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
    trust: Trust = False,
) -> None:
    """Compute COCO metrics."""
    given = given_options(batch=batch, imgsz=image_size_of(imgsz), **tiles_of(slice, overlap, whole))
    if out is not None:
        for module in ("jinja2", "matplotlib"):
            require(module, "eval")

    from rtdetrv4.runtime.engines import is_exported

    with interruptible(lambda: "The evaluation is not complete; files that it has written are whole."):
        detector = detector_of(model, weights, device, precision, trust=trust)
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
    class_list: Annotated[
        str | None, typer.Option("--classes", help="Only these classes, by name or number: cat,dog or 0,2.")
    ] = None,
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
    roi: Annotated[
        list[str] | None,
        typer.Option(help="Only objects whose center is in this polygon; may be repeated.", metavar='"X,Y X,Y X,Y …"'),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(help="Give objects ids that they keep.", metavar="bytetrack|ocsort[:SETTING=NUMBER,…]"),
    ] = None,
    lines: Annotated[
        list[str] | None,
        typer.Option("--line", help="Count tracked objects that cross this line.", metavar='"[NAME=]X,Y X,Y"'),
    ] = None,
    zones: Annotated[
        list[str] | None,
        typer.Option("--zone", help="Count objects in this polygon.", metavar='"[NAME=]X,Y X,Y X,Y …"'),
    ] = None,
    device: RuntimeDevice = None,
    precision: RuntimePrecision = None,
    trust: Trust = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is written.")] = Path("runs/predict"),
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write: pictures, video, jsonl, csv, coco, yolo, yolo-conf, or several with commas; none. "
            "Default: jsonl and pictures, of videos a video.",
            metavar="KIND,…",
        ),
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="Send results to this URL, too.", metavar="URL")] = None,
    mqtt: Annotated[
        str | None, typer.Option(help="Publish results, too.", metavar="mqtt://USER:PASSWORD@HOST/TOPIC")
    ] = None,
) -> int:
    """Detect objects in images, videos and streams, with COCO weights of rtdetrv4-s unless a model is named.

    An exported file, such as weights.onnx, needs no torch.
    """
    names = [*(classes or ()), *(part.strip() for part in (class_list or "").split(",") if part.strip())]
    options = {
        "conf": confidence_of(conf),
        "duplicates": duplicates,
        **given_options(classes=names or None, batch=batch, every=every, latest=latest or None, reconnect=reconnect),
        **given_options(track=track, roi=roi),
    }
    size_hw = image_size_of(imgsz)
    options |= tiles_of(slice, overlap, whole)

    from rtdetrv4.runtime import PredictionFolder
    from rtdetrv4.runtime.overlap import WriteBehind, close_iterator
    from rtdetrv4.runtime.sources import check_names
    from rtdetrv4.runtime.tracking import steps_of

    source = _source_of(sources, stdin_format)
    steps_of(track, roi)  # what cannot be is known before weights are fetched
    count = _counting_of(lines or [], zones or [], is_tracked=track is not None)
    results = PredictionFolder(out, _kinds_of(save))
    outlets = _outlets_of(webhook, mqtt)
    shown: dict[str | None, str] = {}
    totals: dict[str | None, _Total] = {}

    def write(detections: Detections) -> None:
        name = results.add(detections)
        for outlet in outlets:
            outlet.add(detections.to_json())
        counts = Counter(detections.class_name).most_common()
        found = ", ".join(f"{count} {label}" for label, count in counts) or "nothing"
        found += "".join(f"; {each}" for each in detections.counts)
        if detections.frame_index is None:
            print(one_line(f"{name}: {found}"))  # names of files and classes may control the terminal
            return
        totals.setdefault(detections.path, _Total()).add(detections)
        if shown.get(detections.path) != found:  # of a video, a line for each change
            shown[detections.path] = found
            print(one_line(f"{name}: {found}"), flush=True)

    try:
        with (
            interruptible(lambda: f"Complete: {results}."),
            results,
            WriteBehind(write, size_of=_num_bytes) as behind,
        ):
            check_names(sources)  # before weights are fetched, too
            detector = detector_of(model, weights, device, precision, trust=trust)
            stream = detector.predict(source, stream=True, **given_options(imgsz=size_hw), **options)
            try:
                for detections in stream:
                    behind.put(detections if count is None else count(detections))
            finally:
                close_iterator(stream)
    finally:
        for outlet in outlets:
            outlet.close()
    for path, total in totals.items():
        print(one_line(f"{path}: {total}"))
    for outlet in outlets:
        print(outlet)
    print(f"Results: {results.path}" if results.writes else "Nothing was written, as --save says.")
    return int(any(outlet.num_lost for outlet in outlets))


class _Total:
    """What was seen in a video or stream: its images, objects that were tracked, and what crossed lines."""

    MAX_IDS = 1000
    """Ids that are kept, at least; those of objects that are long gone are forgotten, for streams that never end."""

    def __init__(self) -> None:
        self._num_images = 0
        self._tracked: Counter[str] | None = None
        self._last_seen: dict[int, int] = {}
        self._crossed = ""

    def add(self, detections: Detections) -> None:
        """Take the next image."""
        self._num_images += 1
        self._crossed = "".join(f"; {count}" for count in detections.counts if "in" in count.values)
        if detections.tracker_id is None:
            return
        tracked = self._tracked = Counter() if self._tracked is None else self._tracked
        for number, name in zip(detections.tracker_id.tolist(), detections.class_name, strict=True):
            if number >= 0:
                tracked[name] += number not in self._last_seen
                self._last_seen[number] = self._num_images
        if len(self._last_seen) > 2 * self.MAX_IDS:
            newest = sorted(self._last_seen, key=self._last_seen.__getitem__)[-self.MAX_IDS :]
            self._last_seen = {number: self._last_seen[number] for number in newest}

    def __str__(self) -> str:
        text = "1 image" if self._num_images == 1 else f"{self._num_images} images"
        if self._tracked is not None:
            found = ", ".join(f"{count} {name}" for name, count in self._tracked.most_common()) or "nothing"
            text += f", {found} tracked"
        return text + self._crossed


def _num_bytes(detections: Detections) -> int:
    return 0 if detections.image is None else detections.image.nbytes


def _kinds_of(save: str | None) -> list[str] | None:
    """What --save means."""
    if save is None:
        return None
    kinds = [part.strip() for part in save.split(",") if part.strip()]
    return [] if kinds == ["none"] else kinds


def _counting_of(lines: list[str], zones: list[str], *, is_tracked: bool) -> Counting | None:
    """What --line and --zone mean."""
    if not lines and not zones:
        return None
    if lines and not is_tracked:
        raise ConfigError("--line counts objects that are tracked; add --track bytetrack.")
    from rtdetrv4.runtime.regions import Counting, named_shapes

    return Counting(named_shapes(lines, "line"), named_shapes(zones, "zone"))


def _outlets_of(webhook: str | None, mqtt: str | None) -> list[Webhook | Mqtt]:
    """What --webhook and --mqtt mean."""
    if webhook is None and mqtt is None:
        return []
    from rtdetrv4.runtime.delivery import Mqtt, Webhook

    return [*([Webhook(webhook)] if webhook is not None else []), *([Mqtt(mqtt)] if mqtt is not None else [])]


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
