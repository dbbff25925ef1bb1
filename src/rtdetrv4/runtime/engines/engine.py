"""What every runtime offers, and what it can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.runtime.export_metadata import ExportMetadata

Precision = Literal["fp32", "bf16"]
Hint = Literal["latency", "throughput"]
METADATA_FILE = "metadata.json"
"""The metadata of an exported folder."""


class Engine(Protocol):
    """An exported file, loaded by its runtime."""

    @property
    def metadata(self) -> ExportMetadata:
        """What the file says of itself; `batch` is what the file itself accepts."""
        ...

    @property
    def name(self) -> str:
        """The runtime and its version, and what it runs on, such as "ONNX Runtime 1.30.0 on CPU"."""
        ...

    @property
    def num_parallel(self) -> int:
        """The number of calls at once, each from its own thread, with which the most images per second are run."""
        ...

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            images: B×3×H×W float32, as `rtdetrv4.runtime.preprocess` returns it.

        Returns:
            The outputs that `ExportMetadata.outputs` describes, by name; those that are not integers as float32.

        Raises:
            ExportError: the runtime fails, or the file does not accept this batch size.
        """
        ...


class EngineOptions(NamedTuple):
    """How to run a file; see `open_engine`."""

    device: str | None = None
    threads: int | None = None
    precision: Precision | None = None
    hint: Hint = "latency"
    trust: bool = False

    def checked(self) -> EngineOptions:
        """Return these options.

        Raises:
            ConfigError: one of them is impossible for every runtime.
        """
        if self.threads is not None and (not isinstance(self.threads, int | np.integer) or self.threads < 1):
            raise ConfigError(f"threads: got {self.threads}, expected a number of threads, 1 or more.")
        if self.precision not in (None, "fp32", "bf16"):
            raise ConfigError(f'precision: got "{self.precision}", expected fp32 or bf16, or None for the best.')
        if self.hint not in ("latency", "throughput"):
            raise ConfigError(f'hint: got "{self.hint}", expected latency or throughput.')
        return self

    def only(self, runtime: str, devices: Sequence[str] = ("cpu",)) -> None:
        """Check the options for a runtime that computes what the file holds, on these devices.

        Raises:
            ConfigError: the runtime has no such device, or cannot compute in bfloat16.
        """
        if self.device is not None and self.device.partition(":")[0] not in devices:
            raise ConfigError(f'device: got "{self.device}", but {runtime} has {" and ".join(devices)} here.')
        if self.precision == "bf16":
            raise ConfigError(f"precision: {runtime} computes in the precision of the file; bf16 is for OpenVINO.")


def check_batch(images: np.ndarray, metadata: ExportMetadata) -> None:
    """Check that a file accepts these images.

    Raises:
        ExportError: it has another batch size, or another image size.
    """
    wanted = (metadata.batch or "B", 3, *metadata.image_size)
    if images.ndim != 4 or images.shape[1:] != wanted[1:] or (metadata.batch or len(images)) != len(images):
        got, expected = ("×".join(map(str, shape)) for shape in (images.shape, wanted))
        how = "" if metadata.batch is None else " Export without a fixed batch size to run any number at once."
        raise ExportError(f"this exported {metadata.model} takes images {expected}, got {got}.{how}")


def as_input(images: np.ndarray, metadata: ExportMetadata, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Images as the file takes them: in its type, or as frames, which they came from without loss."""
    if metadata.input == "frames":
        return np.rint(images.transpose(0, 2, 3, 1) * np.float32(255)).astype(np.uint8)
    return images.astype(dtype, copy=False)


def as_outputs(names: Sequence[str], arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    """Outputs by name; those that are not integers as float32."""
    found = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
    return {
        name: each if each.dtype.kind in "iu" else each.astype(np.float32, copy=False) for name, each in found.items()
    }


def output_names(metadata: ExportMetadata) -> tuple[str, ...]:
    """Names of the outputs, in the order in which runtimes without names return them."""
    return ("logits", "boxes") if metadata.outputs == "raw" else ("labels", "boxes", "scores")


def reason(error: BaseException) -> str:
    """What a runtime complains about, in one line: the last one, because those before say where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
