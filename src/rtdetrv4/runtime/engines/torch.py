"""Programs of torch.export and TorchScript, run by PyTorch, which need its package.

Both are archives of code and data that PyTorch executes; `rtdetrv4.runtime.trust` says whose are.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError, first_line, require
from rtdetrv4.runtime.engines.damage import cannot_load, check_file
from rtdetrv4.runtime.engines.engine import EngineOptions, as_input, as_outputs, check_batch, output_names
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata, read_metadata


def open_file(path: Path, options: EngineOptions) -> TorchEngine:
    """Load NAME.pt2 or NAME.torchscript; see `open_engine`."""
    return TorchEngine(path, options)


class TorchEngine:
    """A program of PyTorch; see `Engine`.

    Args:
        path: a file written by `Detector.export("pt2")` or `Detector.export("torchscript")`.
        options: `device` is "cpu", "cuda", "cuda:1", … None is the one that the file was written for, the processor.
            `threads` holds for all of PyTorch in this process.

    Raises:
        ConfigError: there is no such device.
        ExportError: the file is broken, or was not written by this package.
    """

    num_parallel = 1

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._torch: Any = require("torch", "torch")
        device, torch = options.device or "cpu", self._torch
        options.only("PyTorch", _devices(torch))
        check_file(path, "torch", trust=options.trust)
        extra = {METADATA_KEY: ""}
        try:
            with torch.no_grad(), _quiet_export(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own deprecations, and of what other versions have written
                if path.suffix == ".torchscript":
                    self._program = torch.jit.load(str(path), map_location=device, _extra_files=extra).eval()
                else:
                    self._program = _moved(torch, torch.export.load(str(path), extra_files=extra), device).module()
        except ConfigError:
            raise
        except Exception as error:  # of any kind, for a damaged archive
            raise cannot_load(path, "torch", first_line(error)) from error
        text = extra[METADATA_KEY]
        self.metadata: ExportMetadata = read_metadata(text or None, path)
        self.name: str = f"PyTorch {torch.__version__.partition('+')[0]} on {device.upper()}"
        self._outputs = output_names(self.metadata)
        self._device, self._threads = device, options.threads

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`."""
        torch = self._torch
        check_batch(images, self.metadata)
        if self._threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                found = self._program(torch.from_numpy(as_input(images, self.metadata)).to(self._device))
        except Exception as error:  # of any kind
            raise ExportError(f"torch cannot run the file at batch {len(images)}: {first_line(error)}") from error
        arrays = (found[name] for name in self._outputs) if isinstance(found, dict) else found
        return as_outputs(self._outputs, [each.detach().cpu().numpy() for each in arrays])


def _devices(torch: Any) -> list[str]:
    """Kinds of devices that there are."""
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] if current is None else [current.type, "cpu"]


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Silence torch.export, which logs the traceback of an error that it raises again."""
    log = logging.getLogger("torch.export")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _moved(torch: Any, program: Any, device: str) -> Any:
    """An exported program on another device than the processor."""
    if device == "cpu":
        return program
    from_passes = require("torch.export.passes", "torch")
    return from_passes.move_to_device_pass(program, torch.device(device))
