"""LiteRT's files (TensorFlow Lite), run by LiteRT."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.errors import ExportError, require
from rtdetrv4.runtime.engines.engine import (
    EngineOptions,
    as_input,
    as_outputs,
    beside,
    check_batch,
    output_names,
    reason,
)
from rtdetrv4.runtime.export_metadata import read_metadata


def open_file(path: Path, options: EngineOptions) -> LiteRtEngine:
    """Load NAME.tflite, with its metadata in NAME.json; see `open_engine`."""
    return LiteRtEngine(path, options)


class LiteRtEngine:
    """A model of LiteRT, run on the processor; see `Engine`.

    Args:
        path: a file written by `Detector.export("litert")`.
        options: `device` is "cpu".

    Raises:
        ConfigError: there is no such device.
        ExportError: the file is broken, or was not written by this package.
    """

    num_parallel = 1

    def __init__(self, path: Path, options: EngineOptions) -> None:
        options.only("LiteRT")
        interpreter = require("ai_edge_litert.interpreter", "litert")
        text = beside(path).read_text(encoding="utf-8") if beside(path).is_file() else None
        self.metadata = read_metadata(text, path)
        try:
            self._interpreter: Any = interpreter.Interpreter(model_path=os.fspath(path), num_threads=options.threads)
            self._interpreter.allocate_tensors()
            (model_input,), outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"litert cannot load {path}: {reason(error)}") from error
        self.metadata = self.metadata._replace(batch=int(model_input["shape"][0]))
        version = require("importlib.metadata").version("ai-edge-litert")
        self.name = f"LiteRT {version} on CPU"
        self._input, self._dtype = model_input["index"], model_input["dtype"]
        self._names = output_names(self.metadata)
        # Converters number the outputs in their order, but the file may list them in another.
        self._outputs = [each["index"] for each in sorted(outputs, key=lambda each: each["name"])]
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`."""
        check_batch(images, self.metadata)
        with self._lock:
            try:
                self._interpreter.set_tensor(self._input, as_input(images, self.metadata, self._dtype))
                self._interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise ExportError(f"litert cannot run the file: {reason(error)}") from error
            return as_outputs(self._names, [self._interpreter.get_tensor(index) for index in self._outputs])
