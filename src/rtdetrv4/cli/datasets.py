"""`doctor`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rtdetrv4.cli.options import Device, Weights, image_size_of
from rtdetrv4.cli.running import detector_of, interruptible
from rtdetrv4.cli.tables import print_findings
from rtdetrv4.errors import ConfigError


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
    weights: Weights = None,
    imgsz: Annotated[
        str | None, typer.Option(help="Image size to train at, by which small boxes are judged: 640, or 480x640.")
    ] = None,
    device: Device = None,
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
    size_hw, detector = image_size_of(imgsz), None
    if model is not None:
        from rtdetrv4.runtime.engines import is_exported

        if is_exported(model):
            raise ConfigError(f"{model} is an exported model; the doctor looks for wrong labels with weights.")
        detector = detector_of(model, weights, device)
        size_hw = size_hw or detector.recipe.model.image_size
    elif weights or device:
        raise ConfigError("--weights and --device say how to look for wrong labels; give --model, too.")
    with interruptible(lambda: "Nothing was changed."):
        inspection = inspect(data)._replace(input_hw=size_hw or INPUT_HW)
        doubts = () if detector is None else suspected(inspection, partial(detector.detections_in, imgsz=size_hw))
        findings = examine(inspection, doubts)
        if json:
            print(findings.to_json())
        else:
            print_findings(findings)
        if out is not None:
            write_pages(out, findings, inspection)
        if fix is not None:
            write_repaired_copy(inspection, found_in(inspection), fix)
    return findings.exit_code(strict=strict)
