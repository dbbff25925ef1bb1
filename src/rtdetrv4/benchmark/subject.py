"""What is timed: an exported model of this package, or any other model that ONNX Runtime or OpenVINO runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from rtdetrv4.errors import ExportError, first_line
from rtdetrv4.runtime.engines import Engine, EngineOptions, open_engine
from rtdetrv4.runtime.engines.onnx import NUMPY_TYPES, load_session
from rtdetrv4.runtime.engines.openvino import OpenVinoEngine, OpenVinoModel
from rtdetrv4.runtime.export_metadata import ExportMetadata, ForeignFileError

Runtime = Literal["onnxruntime", "openvino"]
DEFAULT_SIZE = (640, 640)
"""Height and width for models that take any."""


class Subject(Protocol):
    """A loaded model and how to feed it."""

    @property
    def name(self) -> str:
        """The runtime and what it runs on; see `Engine`."""
        ...

    @property
    def metadata(self) -> ExportMetadata | None:
        """None for a model that another program wrote."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        ...

    @property
    def batch(self) -> int | None:
        """The only batch size; None: any."""
        ...

    @property
    def num_parallel(self) -> int:
        """Calls at once that suit it; see `Engine`."""
        ...

    def feed(self, batch: int) -> Any:
        """Inputs for `__call__`."""
        ...

    def __call__(self, feed: Any) -> Mapping[str, np.ndarray] | Sequence[np.ndarray]:
        """Run the network, and nothing else. A model of this package returns its outputs by name."""
        ...


def open_subject(
    path: Path,
    options: EngineOptions,
    *,
    runtime: Runtime | None = None,
    image_size: tuple[int, int] | None = None,
) -> Subject:
    """Load a model.

    Args:
        path: an exported file or folder, or an .onnx or .xml file of another program.
        options: see `open_engine`.
        runtime: what to run an .onnx file with; None: ONNX Runtime. Other files have one runtime.
        image_size: height and width, for models of other programs that take any.

    Raises:
        ConfigError: an option that the runtime does not have.
        ExportError: the file is missing or broken, or of a kind that cannot be run.
        MissingDependencyError: its runtime is not installed.
    """
    in_openvino = path.suffix == ".onnx" and runtime == "openvino"
    try:
        if in_openvino and path.is_file():
            return _Exported(OpenVinoEngine(path, options.checked()))
        return _Exported(open_engine(path, **options._asdict()))
    except ForeignFileError:
        if path.suffix == ".onnx" and not in_openvino:
            return _ForeignOnnx(path, options, image_size or DEFAULT_SIZE)
        if in_openvino or path.suffix == ".xml" or path.name.endswith("_openvino"):
            return _ForeignOpenVino(path, options, image_size or DEFAULT_SIZE)
        raise


class _Exported:
    """A model that this package exported."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.metadata = engine.name, engine.metadata
        self.image_size, self.batch = engine.metadata.image_size, engine.metadata.batch

    @property
    def num_parallel(self) -> int:
        return self._engine.num_parallel

    def feed(self, batch: int) -> np.ndarray:
        return np.random.default_rng(0).random((batch, 3, *self.image_size), dtype=np.float32)

    def __call__(self, feed: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine(feed)


class Input(NamedTuple):
    """An input of a model of another program."""

    name: str
    shape: tuple[int | None, ...]
    """None: any."""
    dtype: np.dtype[Any]

    @property
    def is_images(self) -> bool:
        """Whether it has four dimensions."""
        return len(self.shape) == 4

    @property
    def has_channels_last(self) -> bool:
        """Whether images are H×W×3, not 3×H×W."""
        return self.shape[3] in (1, 3) and self.shape[1] not in (1, 3)

    def shape_for(self, batch: int, size_hw: tuple[int, int]) -> tuple[int, ...]:
        """The shape, with a batch of images of this size, channels first or last, where the model takes any."""
        if not self.is_images:
            wanted = (batch, *(1 for _ in self.shape[1:]))[: len(self.shape)]
        else:
            wanted = (batch, *size_hw, 3) if self.has_channels_last else (batch, 3, *size_hw)
        return tuple(other if side is None else side for side, other in zip(self.shape, wanted, strict=True))


def random_feed(inputs: Sequence[Input], batch: int, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Random values for every input, by its shape.

    Args:
        inputs: of the model.
        batch: images.
        size_hw: their height and width.

    Returns:
        Floats in [0, 1] and images of integers up to 255. Pairs of other integers, which detectors take for the size to
        scale boxes to, are width and height; all others are 1.
    """
    rng, feed = np.random.default_rng(0), {}
    for each in inputs:
        shape = each.shape_for(batch, size_hw)
        if each.dtype.kind == "f":
            values = rng.random(shape)
        elif each.is_images:
            values = rng.integers(256, size=shape)
        elif len(shape) == 2 and shape[1] == 2:
            values = np.broadcast_to(size_hw[::-1], shape)
        else:
            values = np.ones(shape)
        feed[each.name] = np.array(values, dtype=each.dtype, order="C")
    return feed


class _Foreign:
    """What models of other programs share."""

    metadata = None

    def __init__(self, path: Path, inputs: Sequence[Input], image_size: tuple[int, int]) -> None:
        images = next((each for each in inputs if each.is_images), None)
        if images is None:
            shapes = ", ".join(f"{each.name} {each.shape}" for each in inputs)
            raise ExportError(f"{path} takes no images: expected an input of four dimensions, got {shapes}.")
        self._inputs, self.batch = inputs, images.shape[0]
        first = 1 if images.has_channels_last else 2
        height, width = images.shape_for(1, image_size)[first : first + 2]
        self.image_size = height, width

    def feed(self, batch: int) -> dict[str, np.ndarray]:
        return random_feed(self._inputs, batch, self.image_size)


class _ForeignOnnx(_Foreign):
    """Any ONNX file, in ONNX Runtime."""

    num_parallel = 1

    def __init__(self, path: Path, options: EngineOptions, image_size: tuple[int, int]) -> None:
        self._session, self.name = load_session(path, options)
        inputs = self._session.get_inputs()
        for each in inputs:
            if each.type not in NUMPY_TYPES:
                raise ExportError(f"{path} has an input {each.name} of type {each.type}, which cannot be made up.")
        super().__init__(
            path,
            [
                Input(
                    each.name,
                    tuple(side if isinstance(side, int) else None for side in each.shape),
                    np.dtype(NUMPY_TYPES[each.type]),
                )
                for each in inputs
            ],
            image_size,
        )

    def __call__(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self._session.run(None, feed)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ExportError(f"onnxruntime cannot run the file with random inputs: {first_line(error)}") from error


class _ForeignOpenVino(_Foreign):
    """Any model of OpenVINO, or an ONNX file, in OpenVINO."""

    def __init__(self, path: Path, options: EngineOptions, image_size: tuple[int, int]) -> None:
        self._run = OpenVinoModel(path, options.checked())
        self.name = self._run.name
        inputs = [
            Input(
                each.any_name,
                tuple(side.get_length() if side.is_static else None for side in each.partial_shape),
                np.dtype(each.element_type.to_dtype()),
            )
            for each in self._run.model.inputs
        ]
        super().__init__(path, inputs, image_size)

    @property
    def num_parallel(self) -> int:
        shapes = tuple(each.shape_for(self.batch or 1, self.image_size) for each in self._inputs)
        return self._run.num_parallel(shapes)

    def __call__(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self._run(list(feed.values()))
