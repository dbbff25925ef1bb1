"""Programs of ExecuTorch, run by its own runtime, whose Python package needs PyTorch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.errors import ExportError, MissingDependencyError
from rtdetrv4.runtime.engines.damage import cannot_load, check_file
from rtdetrv4.runtime.engines.engine import (
    EngineOptions,
    as_input,
    as_outputs,
    check_batch,
    output_names,
    reason,
)
from rtdetrv4.runtime.export_metadata import ExportMetadata, read_metadata, read_metadata_file


def open_file(path: Path, options: EngineOptions) -> ExecuTorchEngine:
    """Load NAME.pte, with its metadata in NAME.json; see `open_engine`."""
    return ExecuTorchEngine(path, options)


class ExecuTorchEngine:
    """A program of ExecuTorch, run on the processor; see `Engine`.

    Args:
        path: a file written by `Detector.export("executorch")`.
        options: `device` is "cpu".

    Raises:
        ConfigError: there is no such device.
        ExportError: the file is broken, or was not written by this package.
    """

    num_parallel = 1

    def __init__(self, path: Path, options: EngineOptions) -> None:
        options.only("ExecuTorch")
        if importlib.util.find_spec("executorch") is None:
            raise MissingDependencyError(
                'executorch is not installed; install it with: pip install "rtdetrv4[executorch]"'
            )
        runtime, self._torch = (importlib.import_module(name) for name in ("executorch.runtime", "torch"))
        check_file(path, "executorch", trust=options.trust)
        beside = path.with_suffix(".json")
        self.metadata: ExportMetadata = read_metadata(read_metadata_file(beside) if beside.is_file() else None, path)
        try:
            self._program: Any = runtime.Runtime.get().load_program(path)
            self._method: Any = self._program.load_method("forward")
        except Exception as error:  # of any kind, for a damaged file
            raise cannot_load(path, "executorch", reason(error)) from error
        self.name: str = f"ExecuTorch {importlib.metadata.version('executorch')} on CPU"

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`."""
        check_batch(images, self.metadata)
        try:
            found = self._method.execute([self._torch.from_numpy(as_input(images, self.metadata))])
        except Exception as error:  # as above
            raise ExportError(f"executorch cannot run the file: {reason(error)}") from error
        # The next run writes into the same memory.
        return as_outputs(output_names(self.metadata), [each.numpy().copy() for each in found])
