"""report.html of a run or an evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from rtdetrv4.data.document import count_of
from rtdetrv4.errors import SourceError
from rtdetrv4.pages import encode, render
from rtdetrv4.report.charts import (
    Chart,
    calibration_chart,
    class_chart,
    confusion_chart,
    curve_charts,
    group_charts,
    lost_chart,
    operating_charts,
    percent,
)
from rtdetrv4.report.content import RECIPE_FILE, Content, gather, write_files
from rtdetrv4.report.pictures import Gallery, Likeness, draw_galleries, draw_similarity
from rtdetrv4.yaml12 import dump_yaml

NUM_OPEN = 6
"""Examples of a gallery that are shown at once; the others unfold."""


class Section(NamedTuple):
    """Charts under a heading."""

    id: str
    title: str
    charts: list[Chart]


def write_report(folder: str | Path) -> Path:
    """Write report.html and report.json for a run or an evaluation, from what its folder holds.

    What the folder does not hold, because the run is unfinished or older than this version, is left out and named at
    the end of the page. Pictures are drawn from the images that were evaluated, if they are still at their place.

    Args:
        folder: of a run, or of `rtdetrv4 val --out`.

    Returns:
        The path of report.html.

    Raises:
        ConfigError: the folder holds nothing to report on, a damaged file, or a report.html of another origin.
        MissingDependencyError: jinja2 is not installed.
    """
    folder = Path(folder)
    content = gather(folder)
    path = content.pop("similarity")
    galleries, likenesses = _pictures(content, None if path is None else Path(path))
    content["similarity"] = [{"file": each.name, "mean_cosine": round(each.mean, 4)} for each in likenesses] or None
    return write_files(folder, content, _draw(content, galleries, likenesses))


def _pictures(content: Content, path: Path | None) -> tuple[list[Gallery], list[Likeness]]:
    """Draw what can be drawn, and add what cannot to the list of what is left out."""
    left_out: list[str] = content["left_out"]
    likenesses: list[Likeness] = []
    if path is not None:
        try:
            likenesses = draw_similarity(path)
        except SourceError as error:
            left_out.append(f"Similarity to the teacher: {error}")
    analysis, facts = content["analysis"], content["evaluation"]
    if analysis is None or not any(analysis["galleries"].values()):
        return [], likenesses
    image_dir = (facts or {}).get("image_dir")
    galleries = [] if image_dir is None else draw_galleries(
        analysis["galleries"], analysis["confusion"]["names"], Path(image_dir)
    )  # fmt: skip
    if not galleries:
        left_out.append(f"Example images: none of them could be read in {image_dir or 'an unknown folder'}.")
    return galleries, likenesses


def _draw(content: Content, galleries: list[Gallery], likenesses: list[Likeness]) -> str:
    pictures = [
        *(each for likeness in likenesses for each in likeness[:4]),
        *(each for gallery in galleries for shown in gallery.examples for each in (shown.truth, shown.found)),
    ]
    uris = iter(encode(pictures))
    return render(
        "report/report.html.jinja",
        content=content,
        tiles=_tiles(content),
        setup=_setup(content),
        sections=_sections(content),
        classes=_classes(content["analysis"]),
        likenesses=[(each, [next(uris) for _ in range(4)]) for each in likenesses],
        galleries=[(gallery, [(shown, next(uris), next(uris)) for shown in gallery.examples]) for gallery in galleries],
        num_open=NUM_OPEN,
        metrics=_metrics(content["metrics"]),
        exports=[_export(each) for each in content["exports"]],
        chosen=_chosen(content),
        commands=_commands(content),
        lead=_lead(content),
        versions=((content["record"] or content["evaluation"] or {}).get("versions") or {}).items(),
        recipe=dump_yaml(content["recipe"]) if content["recipe"] else None,
    )


def _lead(content: Content) -> str:
    """What the page is about, as a sentence."""
    if content["kind"] != "run":
        facts = content["evaluation"]
        return "An evaluation" + (f" of {facts['model']} on {facts['data']}." if facts else ".")
    recipe = content["recipe"]
    if _is_pretraining(content):
        folders = ", ".join(recipe["data"].get("unlabeled") or ())
        return f"A pretraining run of {recipe['model']['name']} on {folders}, without labels."
    path = recipe["data"]["path"]
    return f"A run of {recipe['model']['name']}{f' on {path}' if path else ''}."


def _tiles(content: Content) -> list[tuple[str, str]]:
    """The most important numbers and their names."""
    tiles = []
    metrics, training = content["metrics"], content["training"]
    if metrics is not None:
        tiles += [(percent(metrics[key]), name) for key, name in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))]
        if metrics.get("confidence") is not None:
            tiles.append((f"{metrics['confidence']:.2f}", "best confidence threshold"))
    if (speed := (content["evaluation"] or {}).get("speed")) is not None:
        tiles.append((_duration(speed["median_ms"]), "for one image, on this machine"))
    if training is not None:
        what = "pretraining" if _is_pretraining(content) else "training"
        epochs = count_of(training["epochs"], "epoch", "epochs")
        tiles.append((str(timedelta(seconds=round(training["seconds"]))), f"{what}, {epochs}"))
    return tiles


def _is_pretraining(content: Content) -> bool:
    return (content["record"] or {}).get("kind") == "pretraining"


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds / 1000:.3g} s"


def _setup(content: Content) -> list[tuple[str, str]]:
    """What was trained or evaluated on what, as names and texts."""
    rows: list[tuple[str, str | None]] = []
    facts = content["evaluation"] or {}
    if content["kind"] == "run":
        rows = _setup_of_run(content)
    else:
        size = facts.get("image_size")
        rows = [
            ("Model", facts.get("model")),
            ("Weights", facts.get("weights")),
            ("Image size", f"{size[0]} × {size[1]} (height × width)" if size else None),
        ]
    if facts:
        rows.append(("Evaluated on", f"{facts['num_images']} images, {facts['split']} part of {facts['data']}"))
    if (speed := facts.get("speed")) is not None:
        text = (
            f"{_duration(speed['median_ms'])} for one image, median of {speed['num_runs']}; 90 % within "
            f"{_duration(speed['p90_ms'])}. From decoded pixels to boxes, on {speed['processor']}, with PyTorch in "
            "float32; other programs on the machine count in."
        )
        rows.append(("Speed", text))
    return [(name, text) for name, text in rows if text]


def _setup_of_run(content: Content) -> list[tuple[str, str | None]]:
    recipe, record = content["recipe"], content["record"] or {}
    start, training = content["start_of_run"] or {}, content["training"] or {}
    model, distillation, schedule = recipe["model"], recipe["distillation"], recipe["schedule"]
    height, width = model["image_size"]
    data = record.get("data", {})
    is_pretraining = _is_pretraining(content)
    counts = {name: count_of(part["images"], "image", "images") for name, part in data.items()}
    parts = ", ".join(count if is_pretraining else f"{count} in {name}" for name, count in counts.items())
    names = list(record.get("classes", {}))
    has_teacher = start.get("teacher") is not None
    plan = (
        f"{training.get('epochs', 0)} of {count_of(schedule['epochs'], 'epoch', 'epochs')}, "
        f"{count_of(schedule['batch'], 'image', 'images')} per step, learning rate {recipe['optimizer']['lr']:g}"
    )
    num_unreadable = training.get("num_unreadable")
    parameters = f", {start['num_parameters'] / 1e6:.2f} M parameters in training" if start else ""
    return [
        ("Model", f"{model['name']}{', backbone ' + model['backbone'] if model.get('backbone') else ''}{parameters}"),
        ("Image size", f"{height} × {width} (height × width), {model['resize']}"),
        ("Data", "; ".join(filter(None, (_listed_paths(recipe["data"]), parts)))),
        ("Classes", _listing(names)),
        ("Task", "pretraining without labels: backbone, AIFI and projector" if is_pretraining else None),
        ("Started from", _start_text(record.get("start"))),
        ("Teacher", f"{start['teacher']}, mode {distillation['mode']}" if has_teacher else "none"),
        ("Schedule", plan),
        ("Device", start.get("hardware")),
        ("Best epoch", str(training["best_epoch"]) if training.get("best_epoch") else None),
        ("Skipped", f"{training['num_skipped']} step(s) that were not finite" if training.get("num_skipped") else None),
        ("Unreadable", count_of(num_unreadable, "image", "images") if num_unreadable else None),
    ]


def _listed_paths(data: Mapping[str, Any]) -> str:
    """The labeled and the unlabeled data of a recipe."""
    unlabeled = list(data.get("unlabeled") or ())
    return "; ".join(filter(None, (data["path"], f"without labels: {', '.join(unlabeled)}" if unlabeled else None)))


def _start_text(start: Mapping[str, Any] | None) -> str | None:
    if start is None:
        return None
    kinds = {"imagenet": "an ImageNet backbone", "none": "random weights", "file": "a file of weights",
             "pretrained": "a pretrained backbone and encoder"}  # fmt: skip
    text = kinds.get(start["kind"], f"weights trained on {start['kind']}")
    source = f": {start['source']}" if start.get("source") else ""
    return f"{text}{source}{_digest(start.get('sha256'))}"


def _digest(sha256: str | None) -> str:
    return f" (SHA-256 {sha256[:12]}…)" if sha256 else ""


def _listing(names: list[str]) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{len(names)}: {', '.join(names[:20])}{more}"


def _metrics(metrics: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Rows of the table of COCO's numbers: objects, AP and AR."""
    if metrics is None:
        return []
    rows = [("all", "ap", "ar100"), ("all, IoU 0.50", "ap50", None), ("all, IoU 0.75", "ap75", None)]
    rows += [(size, f"ap_{size}", f"ar_{size}") for size in ("small", "medium", "large")]
    return [(name, percent(metrics[ap]), "" if ar is None else percent(metrics[ar])) for name, ap, ar in rows]


def _sections(content: Content) -> list[Section]:
    sections = []
    if content["curves"] is not None:
        sections.append(Section("curves", "How training went", curve_charts(content["curves"])))
    if (analysis := content["analysis"]) is not None:
        sections += [
            Section(
                "lost", "Where AP is lost", [lost_chart(analysis["lost"]), *group_charts(analysis)]
            ),
            Section(
                "thresholds",
                "Precision, recall and thresholds",
                [
                    *operating_charts(analysis["curves"], analysis["by_class"]),
                    calibration_chart(analysis["calibration"], analysis["ece"]),
                ],
            ),
            Section("classes", "Classes", [class_chart(analysis["by_class"]), confusion_chart(analysis["confusion"])]),
        ]  # fmt: skip
    return sections


def _classes(analysis: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """Rows of the table of classes: name, boxes, images, AP, AP50, threshold, precision, recall, F1."""
    if analysis is None:
        return []
    return [
        (
            row["name"],
            str(row["num_boxes"]),
            str(row["num_images"]),
            percent(row["ap"]),
            percent(row["ap50"]),
            "–" if row["confidence"] is None else f"{row['confidence']:.2f}",
            percent(row["precision"]),
            percent(row["recall"]),
            percent(row["f1"]),
        )
        for row in sorted(analysis["by_class"], key=lambda row: -1 if row["ap"] is None else row["ap"], reverse=True)
    ]


def _export(report: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table of exported files."""
    accuracy, shares = report["accuracy"], report["matched"]
    gap = f"{report['max_box_px']:.2g} px, {report['max_score']:.2g}"
    return (
        report["file"],
        report["runtime"],
        report["precision"],
        gap,
        "–" if shares is None else percent(shares),
        "–" if accuracy is None else f"{percent(accuracy['ap'])} / {percent(accuracy['torch_ap'])}",
        *(
            f"{_duration(each['median_ms'])} "
            + ("(one run)" if each["num_runs"] == 1 else f"({_duration(each['p90_ms'])})")
            for each in (report["latency"], report["torch_latency"])
        ),
        f"{report['size_bytes'] / 1e6:.1f}",
    )


def _chosen(content: Content) -> list[tuple[str, str, str]]:
    """Settings that were derived for the run: name, value, reason."""
    derived = (content["record"] or {}).get("derived") or ()
    return [(each["name"], "none" if each["value"] is None else str(each["value"]), each["reason"]) for each in derived]


def _commands(content: Content) -> list[str]:
    """Command lines that do the same again."""
    if content["kind"] != "run":
        facts = content["evaluation"]
        if facts is None or not facts.get("weights"):
            return []
        words = ["rtdetrv4", "val", "--model", facts["weights"], "--data", facts["data"], "--split", facts["split"]]
        return [shlex.join(words)]
    start = (content["record"] or {}).get("start") or {}
    weights = start.get("source") if start.get("kind") in ("file", "pretrained") else start.get("kind")
    is_pretraining = _is_pretraining(content)
    verb = "pretrain" if is_pretraining else "train"
    folders = (content["recipe"]["data"].get("unlabeled") or ()) if is_pretraining else ()
    # Where the run was started, so that relative paths of the data mean the same.
    recipe = f"{content['recipe']['run']['out']}/{RECIPE_FILE}"
    words = ["rtdetrv4", verb, *(word for folder in folders for word in ("--data", folder))]
    words += ["--model", recipe, *(["--weights", weights] if weights else [])]
    return [shlex.join([*words, "--out", "runs/again"])]
