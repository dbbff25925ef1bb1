"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError, require
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
"""Execution providers by the name of a device, the preferred first."""


class OnnxEngine:
    """An ONNX file, loaded by ONNX Runtime; see `Engine`.

    Args:
        path: a file written by `Detector.export("onnx")`.
        device: "cuda" or "cpu"; None for the first of these that there is.
        threads: threads that work on one batch; None leaves it to ONNX Runtime.

    Raises:
        ConfigError: there is no such device.
        ExportError: the file is broken, or was not written by this package.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        runtime = require("onnxruntime", "export")
        found = [name for name, provider in PROVIDERS.items() if provider in runtime.get_available_providers()]
        if device is not None and device not in found:
            raise ConfigError(f'device: got "{device}", but this ONNX Runtime has {" and ".join(found)}.')
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised anyway
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = [PROVIDERS[name] for name in found if device is None or name in (device, "cpu")]
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ExportError(f"onnxruntime cannot load {path}: {error}") from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ExportError(f'{path} has no metadata of rtdetrv4; write it with Detector.export("onnx")')
        model_input = self._session.get_inputs()[0]
        batch = model_input.shape[0]
        self.metadata = ExportMetadata.from_json(text)._replace(batch=batch if isinstance(batch, int) else None)
        self.name = f"ONNX Runtime {runtime.__version__} on {(device or found[0]).upper()}"
        self._input = model_input.name
        self._dtype = np.float16 if model_input.type == "tensor(float16)" else np.float32
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`."""
        try:
            found = self._session.run(self._outputs, {self._input: images.astype(self._dtype, copy=False)})
        except Exception as error:  # as above
            raise ExportError(f"onnxruntime cannot run the file at batch {len(images)}: {error}") from error
        return {
            name: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
            for name, array in zip(self._outputs, found, strict=True)
        }
