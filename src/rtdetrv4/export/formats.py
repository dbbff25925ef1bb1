"""The formats that a detector can be exported to."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from rtdetrv4.errors import ConfigError, MissingDependencyError, did_you_mean
from rtdetrv4.runtime.known_bad import check_runtime

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Format(NamedTuple):
    """A kind of file, and what writes and runs it. `rtdetrv4.export` has a module of the same name."""

    name: str
    ending: str
    """What follows NAME, or NAME-fp16, in the name of the file or folder."""
    modules: Mapping[str, str]
    """What must be there to write a file and run it, each with the extra that installs it."""
    runtime: str
    """What runs it in the proof."""
    precisions: tuple[Precision, ...] = ("fp32",)
    has_opset: bool = False
    """Whether it is made of ONNX operators."""
    needs_batch: bool = False
    """Whether a file takes one batch size only."""


ONNX_MODULES: dict[str, str] = dict.fromkeys(("onnx", "onnxscript", "onnxslim", "onnxruntime"), "export")
FORMATS = {
    each.name: each
    for each in (
        Format("onnx", ".onnx", ONNX_MODULES, "ONNX Runtime", ("fp32", "fp16", "int8"), has_opset=True),
        Format(
            "openvino", "_openvino", ONNX_MODULES | {"openvino": "openvino"}, "OpenVINO", PRECISIONS, has_opset=True
        ),
        Format("torchscript", ".torchscript", {}, "PyTorch"),
        Format("pt2", ".pt2", {}, "PyTorch"),
        Format("executorch", ".pte", {"executorch": "executorch"}, "ExecuTorch", needs_batch=True),
        Format("tensorrt", "-tensorrt.onnx", ONNX_MODULES, "ONNX Runtime", ("fp32", "fp16"), has_opset=True),
        Format("triton", "_triton", ONNX_MODULES, "ONNX Runtime", ("fp32", "fp16", "int8"), has_opset=True),
    )
}
"""By name. What the packages of other formats made of these models: docs/adr/0010-export-formats.md."""


def find_formats(names: str | Sequence[str]) -> list[Format]:
    """The formats that were asked for.

    Args:
        names: one name, several with commas between them, or a list.

    Raises:
        ConfigError: there is no such format.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    for name in wanted:
        if name not in FORMATS:
            raise ConfigError(
                f'format: got "{name}", expected {", ".join(FORMATS)}, or several of them with commas.'
                f"{did_you_mean(name, FORMATS)}"
            )
    if not wanted:
        raise ConfigError(f"format: got none, expected {', '.join(FORMATS)}.")
    return [FORMATS[name] for name in dict.fromkeys(wanted)]


def find_targets(
    out: str | Path | None, usual: Path, formats: Sequence[Format], precision: Precision
) -> dict[str, Path]:
    """The files or folders to write, by format.

    Args:
        out: what the user asked for: a file's name with the ending of a single format, a name without an ending, or a
            folder, which is there or ends in "/", for files of the usual name. None for the usual path.
        usual: the path without an ending.
        formats: the formats.
        precision: in what the network computes.

    Raises:
        ConfigError: the name has the ending of another format.
    """
    single = formats[0] if len(formats) == 1 else None
    if out is not None:
        given = Path(out)
        if single is not None and given.name.endswith(single.ending):
            return {single.name: given}
        endings = tuple(each.ending for each in FORMATS.values())
        if given.is_dir() or str(out).endswith(("/", os.sep)):
            usual = given / usual.name
        elif given.name.endswith(endings) or (single is not None and given.suffix and not given.suffix[1:].isdecimal()):
            wanted = "a name without an ending" if single is None else f"a file name that ends in {single.ending}"
            raise ConfigError(f'out: got "{out}", expected {wanted}.')
        else:
            usual = given
    return {each.name: target(usual, each, precision) for each in formats}


def target(name: Path, format: Format, precision: Precision) -> Path:
    """The file or folder to write: NAME, the precision if it is not fp32, and the ending.

    Args:
        name: the path without an ending.
        format: the format.
        precision: in what the network computes.
    """
    return name.with_name(name.name + ("" if precision == "fp32" else f"-{precision}") + format.ending)


def check_format(
    format: Format, precision: str, batch: int | None, *, grid_sample: bool = True, opset: int | None = None
) -> None:
    """Check, before any work, that a file can be written and proven here.

    Raises:
        ConfigError: the format does not come in this precision, has no opset, or needs a batch size.
        ExportError: its runtime is known to compute these models wrongly.
        MissingDependencyError: a package is missing; the message says how to install it.
    """
    if precision not in format.precisions:
        known = f"{', '.join(format.precisions[:-1])} or {format.precisions[-1]}".removeprefix(" or ")
        raise ConfigError(f'precision: got "{precision}", but {format.name} comes in {known}.')
    if opset is not None and not format.has_opset:
        having = ", ".join(name for name, each in FORMATS.items() if each.has_opset)
        raise ConfigError(f"opset: got {opset}, but {format.name} has none; leave it out. Those with one: {having}.")
    if format.needs_batch and batch is None:
        raise ConfigError(f"batch: a file for {format.name} takes one batch size only; give it, such as batch=1.")
    for module, extra in format.modules.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(f'{module} is not installed; install it with: pip install "rtdetrv4[{extra}]"')
    if format.name == "openvino":
        operators = frozenset({"GridSample"} if grid_sample else ())
        version = importlib.metadata.version("openvino")
        check_runtime("openvino", version, device="cpu", precision=precision, operators=operators)
