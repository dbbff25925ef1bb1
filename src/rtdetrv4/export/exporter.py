"""From a model to proven files, whatever the format."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.export.deployment import Calibration, Deployment, DeploymentModule, GraphOptions
from rtdetrv4.export.formats import FORMATS, Precision, check_format
from rtdetrv4.export.onnx import OPSETS
from rtdetrv4.export.proof import Validation, prove
from rtdetrv4.export.tensorrt import check_opset
from rtdetrv4.models import DetectionModel, fuse
from rtdetrv4.outputs import write_text
from rtdetrv4.runtime.export_metadata import ExportMetadata
from rtdetrv4.runtime.export_report import ExportReport, report_path
from rtdetrv4.runtime.preprocess import ResizeMode
from rtdetrv4.runtime.trust import remember_own
from rtdetrv4.types import ClassMap

logger: logging.Logger = logging.getLogger(__name__)

STRIDE = 32
DEFAULT_OPSET = 18


def export_model(
    model: DetectionModel,
    paths: Mapping[str, str | Path],
    *,
    model_name: str,
    classes: ClassMap,
    image_size: tuple[int, int],
    resize: ResizeMode = "stretch",
    precision: Precision = "fp32",
    options: GraphOptions | None = None,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    simplify: bool = True,
    facts: Mapping[str, str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    training_hw: tuple[float, float] | None = None,
    images: Sequence[np.ndarray] = (),
    validation: Validation | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> tuple[ExportReport, ...]:
    """Write files, each after proof that its runtime computes the same with it as PyTorch.

    Beside each file, its report is written, NAME.onnx.report.json. A file that is there already is replaced once the
    new one has passed.

    Args:
        model: not changed; a fused copy is exported, in float32.
        paths: the file or folder to write for each format.
        model_name: stored in the files.
        classes: all classes of the model; those that `options` chooses are stored in the files.
        image_size: height and width of the input, multiples of 32.
        resize: how images fill the input; stored in the files.
        precision: in what the files compute; not every format knows all.
        options: what the graph takes and returns.
        batch: the only batch size to accept; None accepts any.
        opset: version of the ONNX operators, 18 to 23.
        simplify: simplify the ONNX graph with onnxslim.
        facts: further entries to store, such as the teacher and its license.
        thresholds: the best confidence threshold of each class, by name; stored in the files.
        training_hw: height and width of an image that the input shows at the scale of training; stored in the files.
        images: photos to compare on, H×W×3 uint8 RGB.
        validation: the data set to measure AP on; int8 needs it.
        calibration: inputs of the network to measure the ranges of int8 on, B×3×H×W float32 in [0, 1].

    Returns:
        The reports, in the order of `paths`.

    Raises:
        ConfigError: an option is impossible, or contradicts another.
        ExportError: a file does not agree with PyTorch, or its runtime is known to be wrong; there is no such file
            then, but those before it are.
        MissingDependencyError: a package is not installed.
    """
    options = options or GraphOptions()
    if len(image_size) != 2 or any(side <= 0 or side % STRIDE for side in image_size):
        raise ExportError(f"image_size is {image_size}, expected (height, width), both multiples of {STRIDE}.")
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}.")
    if "tensorrt" in paths:
        check_opset(opset)
    if batch is not None and batch < 1:
        raise ConfigError(f"batch: got {batch}, expected a number of images, 1 or more, or None for any.")
    if options.num_top is not None and options.num_top < 1:
        raise ConfigError(f"num_top: got {options.num_top}, expected a number of detections, 1 or more.")
    if options.num_top is None and options.duplicates == "drop":
        raise ConfigError('duplicates="drop" belongs to postprocessing; leave it out, or export with postprocessing.')
    num_classes = model.query_selection.score_head.out_features
    if classes.num_classes != num_classes:
        raise ExportError(f"The model has {num_classes} classes, but `classes` names {classes.num_classes}.")
    if precision == "int8" and options.frames:
        raise ConfigError("int8 measures ranges on floats; leave out frames (--frames), or choose another precision.")
    if precision == "int8" and (validation is None or not len(calibration)):
        raise ConfigError("int8 needs a data set, to measure ranges and the loss on; give data=… (--data).")
    for name in paths:
        other_opset = None if opset == DEFAULT_OPSET else opset
        check_format(FORMATS[name], precision, batch, grid_sample=options.grid_sample, opset=other_opset)

    chosen = classes
    if options.classes is not None:
        chosen = ClassMap(
            tuple(classes.names[index] for index in options.classes),
            tuple(classes.category_ids[index] for index in options.classes),
        )
    deployment = Deployment(
        DeploymentModule(fuse(model).requires_grad_(False).float().cpu().eval(), options),
        ExportMetadata(
            model=model_name,
            names=chosen.names,
            category_ids=chosen.category_ids,
            image_size=image_size,
            outputs="raw" if options.num_top is None else "postprocessed",
            version=importlib.metadata.version("rtdetrv4"),
            resize=resize,
            thresholds=None if thresholds is None else {k: v for k, v in thresholds.items() if k in chosen.names},
            precision=precision,
            batch=batch,
            input="frames" if options.frames else "images",
            duplicates=options.duplicates,
            training_hw=training_hw,
            left_out=tuple(name for name in classes.names if name not in chosen.names) or None,
        ),
        dict(facts or {}),
        opset,
        simplify,
        None
        if validation is None
        else Calibration(
            calibration, lambda file: validation.measure(file)[0], validation.torch_ap, validation.max_drop
        ),
    )
    return tuple(
        _write_proven(deployment, model, name, Path(path), images=images, validation=validation)
        for name, path in paths.items()
    )


def _write_proven(
    deployment: Deployment,
    model: DetectionModel,
    format: str,
    path: Path,
    *,
    images: Sequence[np.ndarray],
    validation: Validation | None,
) -> ExportReport:
    """Write a file where nobody finds it, prove it, and put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as name:
        folder = Path(name)
        unproven = folder / path.name
        logger.info("Writing %s", path)
        notes = importlib.import_module(f"rtdetrv4.export.{format}").write(deployment, unproven)
        remember_own(unproven)
        logger.info("Comparing it with PyTorch in %s", FORMATS[format].runtime)
        try:
            report = prove(
                unproven,
                model,
                deployment.module,
                format=format,
                file=path.name,
                images=images,
                validation=validation,
                notes=notes,
            )
        except ExportError as error:
            # It never gets the name that it was tried under.
            raise ExportError(f"{path}: {str(error).replace(str(unproven), path.name)} No file was written.") from error
        written = list(folder.iterdir())
        for file in written:
            _replace(file, path.parent / file.name)
        write_text(report_path(path), report.to_json())
    logger.info("%s", report)
    return report


def _replace(source: Path, target: Path) -> None:
    """Move a file or folder to a place where an earlier one may be."""
    if target.is_dir():
        earlier = source.with_name(f"earlier-{source.name}")
        target.rename(earlier)
        source.rename(target)
        shutil.rmtree(earlier)
    else:
        source.replace(target)
