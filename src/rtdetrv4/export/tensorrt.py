"""ONNX files from which TensorRT builds its engines: NAME-tensorrt.onnx, and the command lines that build them.

An engine belongs to one graphics card and one version of TensorRT, so it is built where it runs. TensorRT 11 knows no
precision but that of the graph, and 10 can be told to keep to it. So the file says what is in float16 and what is not:
layer norms, softmax, top-k, sampling coordinates and the decoding of boxes stay in float32.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from rtdetrv4.errors import ExportError
from rtdetrv4.export import onnx
from rtdetrv4.export.deployment import Deployment
from rtdetrv4.runtime.export_metadata import ExportMetadata

LAST_OPSET = 19
"""In files of later ones, TensorRT's parser takes the nearest pixel in a linear GridSample (TensorRT issue 4646)."""
GRID_SAMPLE = (
    "TensorRT 10.13 computes GridSample wrongly, and later ones are reported to: export with grid_sample=False"
)
BATCHES = (1, 4, 16)
"""The smallest, the usual and the largest batch of an engine for any batch size."""


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write NAME-tensorrt.onnx.

    Returns:
        Notes for the report, among them the lines for trtexec.
    """
    lines = build_lines(path.name, deployment.metadata, deployment.module.input_name)
    return (*onnx.write(deployment, path), "run in ONNX Runtime, not in TensorRT", *lines)


def check_opset(opset: int) -> None:
    """Check that TensorRT reads files of this opset as they are meant.

    Raises:
        ExportError: it does not.
    """
    if opset > LAST_OPSET:
        raise ExportError(
            f"opset is {opset}, expected at most {LAST_OPSET} for TensorRT, which samples the nearest pixel in "
            "later ones (TensorRT issue 4646)."
        )


def build_lines(file: str, metadata: ExportMetadata, input_name: str) -> tuple[str, ...]:
    """What to call on the machine with the graphics card, by version of TensorRT."""
    words = ["trtexec", f"--onnx={file}", f"--saveEngine={file.removesuffix('-tensorrt.onnx')}.engine"]
    if metadata.batch is None:
        size = "x".join(map(str, metadata.image_size))
        shape = f"{size}x3" if metadata.input == "frames" else f"3x{size}"
        for kind, batch in zip(("min", "opt", "max"), BATCHES, strict=True):
            words.append(f"--{kind}Shapes={input_name}:{batch}x{shape}")
    line = shlex.join(words)
    if metadata.precision == "fp32":
        return (
            f"TensorRT 8.6, 10: {line} --noTF32",
            f"TensorRT 11: {line} --noTF32",
            GRID_SAMPLE,
        )
    return (
        f"TensorRT 10.6 and newer: {line} --stronglyTyped",
        f"TensorRT 11: {line}",
        "TensorRT 8.5 to 10.5 lose detections in float16: use the float32 file there",
        GRID_SAMPLE,
    )
