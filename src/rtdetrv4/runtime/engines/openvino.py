"""OpenVINO's files, run by OpenVINO."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError, require
from rtdetrv4.runtime.engines.engine import METADATA_FILE, EngineOptions, as_outputs, check_batch, reason
from rtdetrv4.runtime.export_metadata import METADATA_KEY, read_metadata

MAX_COMPILED = 4
"""Batch sizes for which a file is kept compiled."""
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def open_file(path: Path, options: EngineOptions) -> OpenVinoEngine:
    """Load a folder NAME_openvino/ or NAME.xml; see `open_engine`."""
    return OpenVinoEngine(path, options)


class OpenVinoRuntime:
    """OpenVINO with the options asked for, to compile models with.

    Args:
        options: `device` is "cpu", "gpu", "gpu.1", … None is the processor, because detection transformers have been
            found to be computed wrongly on GPUs.

    Attributes:
        name: as of `Engine`.

    Raises:
        ConfigError: there is no such device, or it cannot compute in bfloat16.
        MissingDependencyError: openvino is not installed.
    """

    def __init__(self, options: EngineOptions) -> None:
        openvino = require("openvino", "openvino")
        self._core: Any = openvino.Core()
        self._device = (options.device or "cpu").upper()
        found = [device.lower() for device in self._core.available_devices]
        if not any(each == self._device.lower() or each.startswith(f"{self._device.lower()}.") for each in found):
            raise ConfigError(f'device: got "{options.device}", but OpenVINO has {" and ".join(found)} here.')
        if options.precision == "bf16" and "BF16" not in self._core.get_property(
            self._device, "OPTIMIZATION_CAPABILITIES"
        ):
            raise ConfigError("precision: this processor has no instructions for bf16; leave it out.")
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": options.hint.upper()}
        if options.precision is not None:
            self._settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[options.precision]
        if options.threads is not None and self._device == "CPU":
            self._settings["INFERENCE_NUM_THREADS"] = options.threads
        # What the plugin computes in where it is not told: bfloat16 where the processor multiplies matrices of it.
        preferred = self._core.get_property(self._device, "INFERENCE_PRECISION_HINT").get_type_name()
        self.precision: str = self._settings.get("INFERENCE_PRECISION_HINT", preferred)
        version = openvino.__version__.partition("-")[0]
        self.name = f"OpenVINO {version} on {self._device}, {self.precision}"

    def read(self, path: Path) -> Any:
        """Read a model from NAME.xml or NAME.onnx.

        Raises:
            ExportError: the file is broken.
        """
        try:
            return self._core.read_model(str(path))
        except RuntimeError as error:
            raise ExportError(f"openvino cannot load {path}: {reason(error)}") from error

    def compile(self, model: Any) -> Any:
        """Compile a model.

        Raises:
            ExportError: OpenVINO cannot run it on this device.
        """
        try:
            return self._core.compile_model(model, self._device, self._settings)
        except RuntimeError as error:
            raise ExportError(f"openvino cannot compile the model for {self._device}: {reason(error)}") from error


class OpenVinoEngine:
    """A model of OpenVINO; see `Engine`.

    A model for any batch size is compiled for each size that comes, because fixed shapes are computed faster.

    Args:
        path: a folder NAME_openvino/ written by `Detector.export("openvino")`, or the NAME.xml in it.
        options: see `OpenVinoRuntime`.

    Raises:
        ConfigError: there is no such device, or it cannot compute in bfloat16.
        ExportError: the file is broken, or was not written by this package.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._runtime = OpenVinoRuntime(options)
        self.name = self._runtime.name
        file = find_model(path)
        self._model: Any = self._runtime.read(file)
        metadata = read_metadata(_metadata_text(self._model, file), path)
        batch = self._model.input(0).partial_shape[0]
        self.metadata = metadata._replace(batch=batch.get_length() if batch.is_static else None)
        self._dtype = self._model.input(0).element_type.to_dtype()
        self._outputs = [output.any_name for output in self._model.outputs]
        self._compiled: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._requests = threading.local()

    @property
    def num_parallel(self) -> int:
        """Infer requests that suit the hint."""
        with self._lock:
            compiled = next(iter(self._compiled.values()), None)
        compiled = compiled or self._for_batch(self.metadata.batch or 1)
        return int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`. Threads may call at once: each has a request of its own."""
        check_batch(images, self.metadata)
        compiled = self._for_batch(len(images))
        of_thread: dict[int, tuple[Any, Any]] = self._requests.__dict__.setdefault("by_batch", {})
        if of_thread.get(len(images), (None,))[0] is not compiled:
            of_thread[len(images)] = compiled, compiled.create_infer_request()
        request = of_thread[len(images)][1]
        try:
            found = request.infer({0: images.astype(self._dtype, copy=False)}, share_inputs=True)
        except RuntimeError as error:
            raise ExportError(f"openvino cannot run the file at batch {len(images)}: {reason(error)}") from error
        return as_outputs(self._outputs, [found[index] for index in range(len(self._outputs))])

    def _for_batch(self, batch: int) -> Any:
        with self._lock:
            if batch not in self._compiled:
                model = self._model
                if self.metadata.batch is None:
                    model = model.clone()
                    model.reshape({0: [batch, *list(model.input(0).partial_shape)[1:]]})
                if len(self._compiled) == MAX_COMPILED:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[batch] = self._runtime.compile(model)
            return self._compiled[batch]


def find_model(path: Path) -> Path:
    """The NAME.xml that `path` is, or that it holds.

    Raises:
        ExportError: a folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.xml"))
    if len(found) != 1:
        raise ExportError(f"{path} holds {len(found)} files NAME.xml, expected one; export it again.")
    return found[0]


def _metadata_text(model: Any, file: Path) -> str | None:
    """The metadata in the folder of the model, or in the model itself."""
    beside = file.parent / METADATA_FILE
    if file.suffix == ".xml" and beside.is_file():
        return beside.read_text(encoding="utf-8")
    for place in ([METADATA_KEY], ["framework", METADATA_KEY]):  # the second is where ONNX files have it
        if model.has_rt_info(place):
            return str(model.get_rt_info(place).astype(str))
    return None
