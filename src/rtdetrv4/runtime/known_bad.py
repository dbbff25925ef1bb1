"""Versions of runtimes that are known to compute detection transformers wrongly, asked before they are used.

The reports are other people's, named with each entry; nothing here was measured by this project.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from rtdetrv4.errors import ExportError

logger: logging.Logger = logging.getLogger(__name__)

Version = tuple[int, ...]


class KnownBad(NamedTuple):
    """Some versions of a runtime, and what is wrong with them."""

    runtime: str
    """Its package, in lower case."""
    first: Version
    """The first version affected."""
    last: Version
    """The last one: (10, 5) includes 10.5.1."""
    problem: str
    remedy: str
    source: str
    is_certain: bool = True
    """Whether results are wrong, or only may be; the first is refused, the second is warned of."""
    device: str | None = None
    """The kind of device, in lower case; None: any."""
    precision: str | None = None
    operator: str | None = None
    """The operator that goes wrong, where the graph has it; None: any graph."""


ANY: Version = (0,)
NEWEST: Version = (10**9,)
OPENVINO = "install another one: pip install 'openvino>=2026.1'"
KNOWN_BAD = (
    KnownBad(
        "openvino", (2025, 3), (2025, 4), "finds less and shifts boxes", OPENVINO, "rf-detr issue 515", device="cpu"
    ),
    KnownBad(
        "openvino",
        (2026, 0),
        (2026, 0),
        "finds nothing, or draws wrong masks",
        OPENVINO,
        "geti issue 5882, openvino issue 37990",
        device="cpu",
    ),
    KnownBad(
        "openvino",
        ANY,
        NEWEST,
        "has returned nothing for D-FINE and models with DINOv3",
        'verify the file on it (rtdetrv4 verify --device gpu), or use device="cpu"',
        "openvino issue 31928, geti issue 6996",
        is_certain=False,
        device="gpu",
    ),
    KnownBad(
        "tensorrt",
        (8, 5),
        (10, 5),
        "loses detections in float16",
        "install TensorRT 10.6 or newer, or build in float32",
        "DEIMv2 issues 60 and 112",
        precision="fp16",
    ),
    KnownBad(
        "tensorrt",
        (10, 13),
        (10, 13),
        "builds GridSample and computes it wrongly",
        "export with grid_sample=False (--no-grid-sample), or install another version",
        "lightly-train issue 917",
        operator="GridSample",
    ),
    KnownBad(
        "tensorrt",
        (10, 14),
        NEWEST,
        "has computed detection transformers wrongly",
        "compare on your own images, or export with grid_sample=False (--no-grid-sample)",
        "TensorRT issue 4813, Torch-TensorRT issue 4074",
        is_certain=False,
        operator="GridSample",
    ),
    KnownBad(
        "onnx2tf",
        ANY,
        NEWEST,
        "drifts in GridSample while its own check passes",
        "export with grid_sample=False (--no-grid-sample), and compare on your own images",
        "reports of its users",
        operator="GridSample",
    ),
    KnownBad(
        "directml",
        ANY,
        NEWEST,
        "has computed D-FINE wrongly",
        "verify the file on it, or use the CPU or CUDA provider of ONNX Runtime",
        "D-FINE issue 327",
        is_certain=False,
    ),
)


def check_runtime(
    runtime: str,
    version: str,
    *,
    device: str | None = None,
    precision: str | None = None,
    operators: frozenset[str] = frozenset({"GridSample"}),
) -> None:
    """Refuse a runtime that is known to be wrong, and warn of one that may be.

    Args:
        runtime: its package, such as "openvino".
        version: such as "2026.1.0-20001-abc".
        device: "cpu", "gpu", "gpu.1", …; None: it is not known.
        precision: "fp32", "fp16", …; None: it is not known.
        operators: those in the graph that are known to go wrong somewhere.

    Raises:
        ExportError: results would be wrong; the message says what to install or to change.
    """
    found = parse_version(version)
    kind = None if device is None else re.split(r"[.:]", device.lower())[0]
    for each in KNOWN_BAD:
        if each.runtime != runtime.lower() or not each.first <= found or found[: len(each.last)] > each.last:
            continue
        if (each.device is not None and each.device != kind) or (
            each.precision is not None and each.precision != precision
        ):
            continue
        if each.operator is not None and each.operator not in operators:
            continue
        where = "" if each.device is None else f" on {each.device.upper()}s"
        message = f"{each.runtime} {version}{where} {each.problem} ({each.source}); {each.remedy}."
        if each.is_certain:
            raise ExportError(message)
        logger.warning("%s", message)


def parse_version(text: str) -> Version:
    """The numbers that a version begins with: "2026.1.0-20001-abc" → (2026, 1, 0).

    Raises:
        ValueError: it begins with none.
    """
    found = re.match(r"\d+(?:\.\d+)*", text)
    if found is None:
        raise ValueError(f"not a version: {text}")
    return tuple(map(int, found[0].split(".")))
