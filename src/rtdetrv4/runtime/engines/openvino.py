"""OpenVINO's files, run by OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from rtdetrv4.errors import ConfigError, ExportError, require
from rtdetrv4.runtime.engines.damage import cannot_load, check_file
from rtdetrv4.runtime.engines.engine import METADATA_FILE, EngineOptions, as_input, as_outputs, check_batch, reason
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata, read_metadata, read_metadata_file
from rtdetrv4.runtime.known_bad import check_runtime

MAX_COMPILED = 8
"""Shapes for which a model is kept compiled: each size of a batch of up to so many images, as when it is not full.
A thread that is idle may keep one more for each shape that it has seen."""
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}

Shapes = tuple[tuple[int, ...], ...]
"""Of all inputs of a model."""


def open_file(path: Path, options: EngineOptions) -> OpenVinoEngine:
    """Load a folder NAME_openvino/ or NAME.xml; see `open_engine`."""
    return OpenVinoEngine(path, options)


@cache
def the_core() -> Any:
    """The only `openvino.Core` of this process.

    On processors with AMX, the CPU plugin of each Core gives the calling thread a stack for signals, and puts back the
    one before when it goes (seen in 2026.4.1). If two go in the order in which they came, the stack that is put back is
    gone, and the next Ctrl-C or SIGTERM is a segmentation fault.
    """
    return require("openvino", "openvino").Core()


class OpenVinoModel:
    """Any model that OpenVINO reads, compiled for each shape of inputs that comes: fixed shapes are computed faster.

    Threads may call at once: each has a request of its own.

    Args:
        path: a folder with NAME.xml, that file itself, or NAME.onnx.
        options: `device` is "cpu", "gpu", "gpu.1", … None is the processor, because detection transformers have been
            found to be computed wrongly on GPUs.

    Attributes:
        name: the runtime and what it runs on; see `Engine`.
        model: the `openvino.Model`.

    Raises:
        ConfigError: there is no such device, or it cannot compute in bfloat16.
        ExportError: the file is broken, or this version of OpenVINO is known to be wrong.
        MissingDependencyError: openvino is not installed.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        openvino = require("openvino", "openvino")
        core = the_core()
        device = (options.device or "cpu").upper()
        found = [each.lower() for each in core.available_devices]
        if not any(each == device.lower() or each.startswith(f"{device.lower()}.") for each in found):
            raise ConfigError(f'device: got "{options.device}", but OpenVINO has {" and ".join(found)} here.')
        version = openvino.__version__.partition("-")[0]
        check_runtime("openvino", version, device=device)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": options.hint.upper()}
        if options.precision is not None:
            if options.precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
                raise ConfigError("precision: this processor has no instructions for bf16; leave it out.")
            settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[options.precision]
        if options.threads is not None and device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = options.threads
        # What the plugin computes in where it is not told: bfloat16 where the processor multiplies matrices of it.
        preferred = core.get_property(device, "INFERENCE_PRECISION_HINT").get_type_name()
        self.name: str = f"OpenVINO {version} on {device}, {settings.get('INFERENCE_PRECISION_HINT', preferred)}"
        self._compile = partial(core.compile_model, device_name=device, config=settings)
        file = find_model(path)
        check_file(file, "openvino", trust=options.trust)
        try:
            self.model: Any = core.read_model(str(file))
        except (RuntimeError, UnicodeDecodeError) as error:  # the second if the message quotes what is no text
            weights = file.with_suffix(".bin")
            if file.suffix == ".xml" and not weights.is_file():
                raise ExportError(
                    f"openvino cannot load {file}: {weights.name}, its weights, is not beside it."
                ) from error
            raise cannot_load(file, "openvino", reason(error)) from error
        self._compiled: dict[Shapes, Any] = {}
        self._lock = threading.Lock()
        self._requests = threading.local()

    def num_parallel(self, shapes: Shapes) -> int:
        """Requests that suit the hint, for inputs of these shapes."""
        return int(self._for(shapes).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the model.

        Args:
            inputs: in the order of the model's.

        Returns:
            The outputs, in its order.

        Raises:
            ExportError: OpenVINO fails.
        """
        shapes = tuple(each.shape for each in inputs)
        compiled = self._for(shapes)
        of_thread: dict[int, tuple[Any, Any]] = self._requests.__dict__.setdefault("by_model", {})
        if id(compiled) not in of_thread:
            with self._lock:  # a request keeps its model alive
                kept = {id(each) for each in self._compiled.values()}
            for key in of_thread.keys() - kept:
                del of_thread[key]
            of_thread[id(compiled)] = compiled, compiled.create_infer_request()
        request = of_thread[id(compiled)][1]
        try:
            found = request.infer(dict(enumerate(inputs)), share_inputs=True)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ExportError(f"openvino cannot run the file at batch {shapes[0][0]}: {reason(error)}") from error
        return [found[index] for index in range(len(self.model.outputs))]

    def _for(self, shapes: Shapes) -> Any:
        """The model compiled for inputs of these shapes."""
        with self._lock:
            if shapes in self._compiled:
                self._compiled[shapes] = self._compiled.pop(shapes)  # the last to be forgotten
                return self._compiled[shapes]
            model = self.model
            try:
                if model.is_dynamic():
                    model = model.clone()
                    model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
                compiled = self._compile(model)
            except (RuntimeError, UnicodeDecodeError) as error:
                raise ExportError(f"openvino cannot compile the model: {reason(error)}") from error
            if len(self._compiled) == MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[shapes] = compiled
            return compiled


class OpenVinoEngine:
    """A model of OpenVINO; see `Engine`.

    Args:
        path: a folder NAME_openvino/ written by `Detector.export("openvino")`, the NAME.xml in it, or NAME.onnx.
        options: see `OpenVinoModel`.

    Raises:
        ConfigError: there is no such device, or it cannot compute in bfloat16.
        ExportError: the file is broken, or was not written by this package, or OpenVINO is known to be wrong.
        MissingDependencyError: openvino is not installed.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._run = OpenVinoModel(path, options)
        self.name: str = self._run.name
        model = self._run.model
        metadata = read_metadata(_metadata_text(model, path), path)
        on_cpu = (options.device or "cpu").lower() == "cpu"
        if options.precision is None and on_cpu and metadata.precision == "int8":
            # As it was proven: bfloat16 beside 8 bits costs several times the AP that 8 bits alone do.
            self._run = OpenVinoModel(path, options._replace(precision="fp32"))
            self.name, model = self._run.name, self._run.model
        shape = model.input(0).partial_shape
        self.metadata: ExportMetadata = metadata._replace(batch=shape[0].get_length() if shape[0].is_static else None)
        self._image = tuple(side.get_length() for side in list(shape)[1:])
        self._dtype = model.input(0).element_type.to_dtype()
        self._outputs = [output.any_name for output in model.outputs]

    @property
    def num_parallel(self) -> int:
        """Infer requests that suit the hint."""
        return self._run.num_parallel(((self.metadata.batch or 1, *self._image),))

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch; see `Engine`."""
        check_batch(images, self.metadata)
        return as_outputs(self._outputs, self._run([as_input(images, self.metadata, self._dtype)]))


def find_model(path: Path) -> Path:
    """The NAME.xml that `path` is, or that it holds.

    Raises:
        ExportError: a folder holds none, or several.
    """
    if not path.is_dir():
        if path.suffix not in (".xml", ".onnx"):
            raise ExportError(f"{path} is a file, expected the folder that the export wrote, or the NAME.xml in it.")
        return path
    found = sorted(path.glob("*.xml"))
    if len(found) != 1:
        raise ExportError(f"{path} holds {len(found)} files NAME.xml, expected one; export it again.")
    return found[0]


def _metadata_text(model: Any, path: Path) -> str | bytes | None:
    """The metadata in the folder of the model, or in the model itself."""
    beside = (path if path.is_dir() else path.parent) / METADATA_FILE
    if path.suffix != ".onnx" and beside.is_file():
        return read_metadata_file(beside)
    for place in ([METADATA_KEY], ["framework", METADATA_KEY]):  # the second is where ONNX files have it
        if model.has_rt_info(place):
            return str(model.get_rt_info(place).astype(str))
    return None
