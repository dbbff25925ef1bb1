"""`train`, and what is done around training: `pretrain`, `augment`, `compare`, `report` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtdetrv4.cli.options import (
    DATA,
    Amp,
    AutoResume,
    Batch,
    Budget,
    Cache,
    Device,
    Epochs,
    ExistOk,
    ImageSize,
    LearningRate,
    Model,
    Out,
    Seed,
    Settings,
    Start,
    Teacher,
    Tracker,
    Workers,
    batch_of,
    check_settings,
    device_of,
    given_options,
    image_size_of,
    require_data,
    seeds_of,
)
from rtdetrv4.cli.running import can_resume, check_resume, detector_of, interruptible, is_main_process, run_to_resume
from rtdetrv4.cli.tables import print_metrics
from rtdetrv4.errors import ConfigError

EXIT_INCOMPLETE = 1
NOT_BEGUN = "Training had not begun."


def train(
    data: Annotated[str | None, DATA] = None,
    model: Model = None,
    weights: Start = None,
    teacher: Teacher = None,
    epochs: Epochs = None,
    batch: Batch = None,
    imgsz: ImageSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    cache: Cache = None,
    amp: Amp = None,
    seed: Seed = None,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or else the latest one in runs/train.")
    ] = False,
    auto_resume: AutoResume = False,
    exist_ok: ExistOk = False,
    tracker: Tracker = None,
    budget: Budget = None,
    settings: Settings = None,
) -> int:
    """Train a detector. Settings that are not given are chosen to fit the data and the machine."""
    from rtdetrv4.config import parse_assignment
    from rtdetrv4.config.schema import RunConfig

    check_resume(resume=resume, auto_resume=auto_resume)
    if auto_resume and can_resume(out, RunConfig().out):
        resume, budget = True, None  # which is spent
    if not resume:
        require_data(data, model)
    overrides = dict(parse_assignment(text) for text in settings or ())
    given = given_options(
        epochs=epochs,
        batch=batch_of(batch),
        imgsz=image_size_of(imgsz),
        teacher=teacher,
        lr=lr,
        device=device_of(device),
        workers=workers,
        cache=cache,
        seed=seed,
        amp=amp,
        out=out,
        tracker=tracker,
    )
    check_settings(model, weights, given | overrides, budget, resume=resume)
    if resume and model is None:
        model, given["out"] = run_to_resume(out, RunConfig().out)
    given |= given_options(budget=budget)
    with interruptible(lambda: NOT_BEGUN):
        result = detector_of(model, weights).train(
            data, resume=resume or ("auto" if auto_resume else False), exist_ok=exist_ok, overrides=overrides, **given
        )
    if is_main_process():
        from rtdetrv4.report import REPORT_PAGE

        if result.metrics is not None:
            print_metrics(result.metrics)
        print(f"Weights: {result.weights}")
        if (page := result.out / REPORT_PAGE).is_file():
            print(f"Report: {page}")
    return EXIT_INCOMPLETE if result.problems else 0


def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Folder of images, or a data set whose labels to ignore; may be repeated."),
    ] = None,
    model: Model = None,
    weights: Start = None,
    teacher: Teacher = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None,
    batch: Batch = None,
    imgsz: ImageSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    cache: Cache = None,
    amp: Amp = None,
    seed: Seed = None,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or else the latest one in runs/pretrain.")
    ] = False,
    auto_resume: AutoResume = False,
    exist_ok: ExistOk = False,
    tracker: Tracker = None,
    budget: Budget = None,
    settings: Settings = None,
) -> int:
    """Have backbone and encoder learn from a teacher on images without labels, before `train --weights`."""
    from rtdetrv4.config import parse_assignment

    check_resume(resume=resume, auto_resume=auto_resume)
    if auto_resume and can_resume(out, "runs/pretrain"):
        resume, budget = True, None  # which is spent
    overrides = dict(parse_assignment(text) for text in settings or ())
    if not (resume or data or "data.unlabeled" in overrides or (model or "").endswith((".yaml", ".yml"))):
        raise ConfigError("Missing option --data: a folder of images, or a data set whose labels to ignore.")
    given = given_options(
        epochs=epochs,
        batch=batch_of(batch),
        imgsz=image_size_of(imgsz),
        teacher=teacher,
        lr=lr,
        device=device_of(device),
        workers=workers,
        cache=cache,
        seed=seed,
        amp=amp,
        out=out,
        tracker=tracker,
    )
    check_settings(model, weights, given | overrides, budget, resume=resume)
    if resume and model is None:
        model, given["out"] = run_to_resume(out, "runs/pretrain")
    given |= given_options(budget=budget)
    with interruptible(lambda: NOT_BEGUN):
        result = detector_of(model, weights).pretrain(
            data or None,
            resume=resume or ("auto" if auto_resume else False),
            exist_ok=exist_ok,
            overrides=overrides,
            **given,
        )
    if is_main_process():
        if result.loss is not None:
            print(f"L_DSI: {result.loss:.3f}")
        print(f"Weights: {result.weights}")
        print(f"Next: rtdetrv4 train --data DATA --weights {result.weights}")
    return EXIT_INCOMPLETE if result.problems else 0


def augment(
    data: Annotated[str, typer.Argument(help="Data set, as for train.")],
    model: Model = None,
    weights: Start = None,
    epochs: Epochs = None,
    batch: Batch = None,
    imgsz: ImageSize = None,
    device: Device = None,
    seed: Seed = None,
    budget: Budget = None,
    num_images: Annotated[int, typer.Option("--images", help="Images to show.", min=1)] = 6,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.", dir_okay=False)] = Path(
        "runs/augment.jpg"
    ),
    settings: Settings = None,
) -> None:
    """Draw training images as each stage of `train` with the same options would show them to the model."""
    from rtdetrv4.config import parse_assignment

    overrides = dict(parse_assignment(text) for text in settings or ())
    given = given_options(
        epochs=epochs,
        batch=batch_of(batch),
        imgsz=image_size_of(imgsz),
        device=device_of(device),
        seed=seed,
    )
    check_settings(model, weights, given | overrides, budget)
    given |= given_options(budget=budget)
    with interruptible(lambda: "No picture was written."):
        path = detector_of(model, weights).augment(data, num_images=num_images, out=out, overrides=overrides, **given)
    print(f"Picture: {path}")


def compare(
    data: Annotated[str | None, DATA] = None,
    model: Model = None,
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
            "--arm",
            help="An arm of your own: --arm strong:distillation.weight=20, or with weights of its own: "
            "--arm before:weights=runs/pre-{seed}/weights.safetensors",
            metavar="NAME:SETTING=VALUE,…",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs per arm, with seeds 0, 1, 2, …", min=1)] = 3,
    seed_list: Annotated[str | None, typer.Option(help="Use these seeds instead: 0,2,5.", metavar="N,N")] = None,
    weights: Start = None,
    teacher: Teacher = None,
    epochs: Epochs = None,
    batch: Batch = None,
    imgsz: ImageSize = None,
    lr: LearningRate = None,
    device: Device = None,
    workers: Workers = None,
    amp: Amp = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all runs and the table.")] = Path("runs/compare"),
    report: Annotated[bool, typer.Option("--report", help="Only report on the finished runs in --out.")] = False,
    settings: Settings = None,
) -> None:
    """Train several variants with several seeds, and show their differences with confidence intervals."""
    names = [*(arms.split(",") if arms else ()), *(arm or ())]
    chosen = seeds_of(seed_list) or seeds
    if report:
        from rtdetrv4.comparison import read_comparison

        comparison = read_comparison(out, [name.strip() for name in names] or None)
    else:
        require_data(data, model)
        from rtdetrv4.config import parse_assignment

        given = given_options(
            epochs=epochs,
            batch=batch_of(batch),
            imgsz=image_size_of(imgsz),
            teacher=teacher,
            lr=lr,
            device=device_of(device),
            workers=workers,
            amp=amp,
        )
        overrides = dict(parse_assignment(text) for text in settings or ())
        check_settings(model, weights, given | overrides, None)
        given |= given_options(arms=names or None, weights=weights)
        from rtdetrv4.comparison import compare as run_comparison

        with interruptible(lambda: "Finished runs are kept; the same command goes on."):
            comparison = run_comparison(data, model, seeds=chosen, out=out, overrides=overrides, **given)
    print(comparison)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, of `val --out` or of a comparison.", metavar="RUN")],
) -> None:
    """Write report.html and report.json again, from what a folder holds."""
    from rtdetrv4.comparison.summary import SETTINGS_FILE, read_comparison
    from rtdetrv4.report import REPORT_PAGE, write_report

    with interruptible(lambda: "Files that were written are whole."):
        if (folder / SETTINGS_FILE).is_file():
            page = read_comparison(folder).out / REPORT_PAGE
        else:
            page = write_report(folder)
    print(f"Report: {page}")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("runs/demo"),
) -> None:
    """Train, evaluate and export a small detector on synthetic shapes."""
    from rtdetrv4.demo import run_demo

    run_demo(out, print)
