"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError, first_line, require
from rtdetrv4.runtime.engines.damage import cannot_load, check_file
from rtdetrv4.runtime.engines.engine import EngineOptions, as_input, as_outputs, check_batch
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata, read_metadata

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
"""Execution providers by the name of a device, the preferred first."""
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def open_file(path: Path, options: EngineOptions) -> OnnxEngine:
    """Load an ONNX file; see `open_engine`."""
    return OnnxEngine(path, options)


def load_session(path: Path, options: EngineOptions) -> tuple[Any, str]:
    """Load any ONNX file.

    Returns:
        An `onnxruntime.InferenceSession`, and the name of the runtime.

    Raises:
        ConfigError: there is no such device.
        ExportError: the file is broken.
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "export")
    found = [name for name, provider in PROVIDERS.items() if provider in runtime.get_available_providers()]
    device, _, index = (options.device or found[0]).partition(":")
    options.only("this ONNX Runtime", found)
    check_file(path, "onnxruntime", trust=options.trust)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4  # errors are raised anyway
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    providers: list[Any] = [PROVIDERS["cpu"]]
    if device != "cpu":
        providers.insert(0, (PROVIDERS[device], {"device_id": index or "0"}))
    try:
        session = runtime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise cannot_load(path, "onnxruntime", first_line(error)) from error
    if PROVIDERS[device] not in session.get_providers():  # its libraries are missing, which is only logged
        raise ConfigError(f'device: ONNX Runtime cannot use "{device}" here; install what it needs, or use "cpu".')
    return session, f"ONNX Runtime {runtime.__version__} on {device.upper()}"


class OnnxEngine:
    """An ONNX file, loaded by ONNX Runtime; see `Engine`.

    Args:
        path: a file written by `Detector.export("onnx")`.
        options: `device` is "cuda", "cuda:1" or "cpu"; None for the first of these that there is.

    Raises:
        ConfigError: there is no such device.
        ExportError: the file is broken, or was not written by this package.
    """

    num_parallel = 1

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self.name: str
        self._session, self.name = load_session(path, options)
        try:
            described = self._session.get_modelmeta().custom_metadata_map
            inputs = [(each.name, each.type, list(each.shape)) for each in self._session.get_inputs()]
            self._outputs = [output.name for output in self._session.get_outputs()]
        except ValueError as error:  # names that are no UTF-8
            raise cannot_load(path, "onnxruntime", first_line(error)) from error
        metadata = read_metadata(described.get(METADATA_KEY), path)
        self._input, kind, shape = inputs[0] if len(inputs) == 1 else ("", "", [])
        if len(shape) != 4 or kind not in NUMPY_TYPES:
            taken = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs) or "nothing"
            raise ExportError(f"{path} takes {taken}, expected images; export it again.")
        batch = shape[0]
        self.metadata: ExportMetadata = metadata._replace(batch=batch if isinstance(batch, int) else None)
        self._dtype = NUMPY_TYPES[kind]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`."""
        check_batch(images, self.metadata)
        try:
            found = self._session.run(self._outputs, {self._input: as_input(images, self.metadata, self._dtype)})
        except Exception as error:  # as above
            raise ExportError(f"onnxruntime cannot run the file at batch {len(images)}: {first_line(error)}") from error
        return as_outputs(self._outputs, found)
