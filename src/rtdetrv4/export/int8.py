"""Networks that compute in 8 bits where that costs little, and say where they do not.

ONNX Runtime and OpenVINO get the same: the ranges of activations are the least and greatest values on calibration
images, because percentiles cut off the few large values that a detection transformer lives on; weights are quantized
per channel and symmetrically, and biases corrected for it; and the decoder stays in float, because coordinates,
sampling points and distributions over edges need more than 256 steps. What each part costs: docs/research/int8.md.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import track

from rtdetrv4.errors import ConfigError, ExportError, first_line, require
from rtdetrv4.export.parts import CONVOLUTIONS, PARTS, Part, onnx_graph, parts_of
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata

if TYPE_CHECKING:
    import onnx

logger: logging.Logger = logging.getLogger(__name__)

INT8_PARTS: tuple[Part, ...] = ("backbone", "aifi", "ccff")
IN_FLOAT: Mapping[Part, str] = {
    "query_selection": "its two layers take too little time to gain from it",
    "decoder": "coordinates, sampling points and edge distributions need more than 256 steps",
}
"""Why the other parts are left in float."""

MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm"})
AROUND_CONVOLUTIONS = frozenset(
    {
        *("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul"),
        *("Pad", "Relu", "Resize", "Sigmoid", "Slice", "Split"),
    }
)
"""What ONNX Runtime computes in 8 bits between two convolutions, instead of converting to float and back."""


class Quantized(NamedTuple):
    """An int8 file, and what in it is not int8."""

    path: Path
    parts: tuple[Part, ...]
    """The parts in int8."""
    in_float: Mapping[Part, str]
    """Why each of the other parts is left in float."""
    num_int8: int
    """Convolutions and matrix products with weights that are computed in int8."""
    num_float: int
    """Those left in float."""
    num_images: int
    """Images that ranges were measured on."""
    versions: Mapping[str, str]


class Quantize(Protocol):
    """`quantize_onnx` or `quantize_openvino`."""

    def __call__(
        self, source: Path, target: Path, calibration: Sequence[np.ndarray], *, parts: Collection[Part]
    ) -> Quantized:
        """Quantize some parts of a network."""
        ...


class Trial(NamedTuple):
    """What was measured with some parts in int8."""

    parts: tuple[Part, ...]
    ap: float


class Accepted(NamedTuple):
    """An int8 file that is accurate enough, and what was tried to get it."""

    quantized: Quantized
    ap: float
    trials: tuple[Trial, ...]


def quantize_onnx(
    source: Path,
    target: Path,
    calibration: Sequence[np.ndarray],
    *,
    parts: Collection[Part] = INT8_PARTS,
    seven_bits: bool = False,
) -> Quantized:
    """Quantize an ONNX file for ONNX Runtime and OpenVINO, with QuantizeLinear and DequantizeLinear nodes.

    Args:
        source: a float32 file of `export_model`.
        target: the file to write; it keeps the metadata, with precision "int8".
        calibration: inputs of the network, B×3×H×W float32 each; see `calibration.CalibrationImages`.
        parts: the parts to quantize. The attention, the norms and the sums of residuals in them stay in float.
        seven_bits: use half the range of weights, for processors without VNNI, whose sums of products overflow.

    Raises:
        ConfigError: there are no such parts, or no calibration images.
        ExportError: `source` cannot be read, or is no graph of this package.
        MissingDependencyError: onnx is not installed.
    """
    wanted = _checked(parts, calibration)
    onnx = require("onnx", "export")
    quantization = require("onnxruntime.quantization", "export")
    try:
        model = onnx.load(source)
    except Exception as error:  # protobuf's, or of the file system
        raise ExportError(f"onnx cannot load {source}: {first_line(error)}") from error
    graph = onnx_graph(model)
    part_of = parts_of(graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    chosen = [
        node.name
        for node in model.graph.node
        if part_of[node.name] in wanted and _is_quantizable(node, part_of[node.name], constants)
    ]
    entries = {entry.key: entry.value for entry in model.metadata_props}
    correct_biases(model, chosen, calibration, 64 if seven_bits else 127)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        float_file, int8_file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, float_file)
        quantization.quantize_static(
            float_file,
            int8_file,
            _reader(calibration, model.graph.input[0].name),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=seven_bits,
            nodes_to_quantize=chosen,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )
        result = onnx.load(int8_file)
    del result.metadata_props[:]
    onnx.helper.set_model_props(result, _as_int8(entries))
    for item in (*result.graph.node, *result.graph.value_info):
        item.doc_string = ""
    del result.graph.value_info[:]
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(result, target)
    quantized_weights = {
        output for node in result.graph.node if node.op_type == "DequantizeLinear" for output in node.output
    }
    weighted = [node for node in result.graph.node if node.op_type in CONVOLUTIONS | MATRIX_PRODUCTS]
    num_int8 = sum(node.input[0] in quantized_weights and node.input[1] in quantized_weights for node in weighted)
    num_float = sum(node.input[1] in constants for node in weighted)
    return _quantized(target, wanted, num_int8, num_float, calibration, ("onnxruntime", "onnx"))


def correct_biases(
    model: onnx.ModelProto, names: Collection[str], calibration: Sequence[np.ndarray], num_steps: int = 127
) -> None:
    """Move the biases of convolutions so that rounding their weights does not shift their outputs on average.

    Depthwise kernels need it most: the errors of nine weights do not cancel.

    Args:
        model: a float32 graph, changed in place.
        names: of nodes; those that are no convolutions with constant weights are left alone.
        calibration: inputs of the network.
        num_steps: steps of the largest weight of a channel.

    References:
        Nagel et al., arXiv 1906.04721, section 4.2, with measured instead of derived means, as NNCF does.
    """
    onnx = require("onnx", "export")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [
        node
        for node in model.graph.node
        if node.name in names and node.op_type in CONVOLUTIONS and node.input[1] in constants
    ]
    if not nodes:
        return
    means = _channel_means(model, {node.input[0] for node in nodes}, calibration)
    for node in nodes:
        weight = onnx.numpy_helper.to_array(constants[node.input[1]])
        num_outputs, num_inputs = weight.shape[:2]
        scale = np.abs(weight).reshape(num_outputs, -1).max(axis=1).reshape(-1, *[1] * (weight.ndim - 1)) / num_steps
        scale[scale == 0] = 1
        error = (np.rint(weight / scale) * scale - weight).reshape(num_outputs, num_inputs, -1).sum(axis=2)
        mean = means[node.input[0]].reshape(-1, num_inputs)  # by group
        shift = (error * np.repeat(mean, num_outputs // len(mean), axis=0)).sum(axis=1)
        bias = np.zeros(num_outputs, dtype=np.float32)
        if len(node.input) > 2:
            bias = onnx.numpy_helper.to_array(constants[node.input[2]])
        name = f"{node.name}_corrected_bias"
        model.graph.initializer.append(onnx.numpy_helper.from_array((bias - shift).astype(np.float32), name))
        node.input[2:] = [name]
    used = {name for node in model.graph.node for name in node.input}
    for index in reversed([i for i, tensor in enumerate(model.graph.initializer) if tensor.name not in used]):
        del model.graph.initializer[index]


def _channel_means(
    model: onnx.ModelProto, tensors: Collection[str], calibration: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The mean of each channel of some B×C×H×W tensors over all calibration images."""
    onnx = require("onnx", "export")
    runtime = require("onnxruntime", "export")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 2, 3]), "watched_mean_axes"))
    names = sorted(tensors)
    for index, name in enumerate(names):
        watched.graph.node.append(
            onnx.helper.make_node("ReduceMean", [name, "watched_mean_axes"], [f"watched_mean_{index}"], keepdims=0)
        )
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(f"watched_mean_{index}", onnx.TensorProto.FLOAT, None)
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    session = runtime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    input_name = model.graph.input[0].name
    totals: list[np.ndarray] = [np.zeros(())] * len(names)
    for images in calibration:
        found = session.run(None, {input_name: images})
        totals = [total + len(images) * mean for total, mean in zip(totals, found, strict=True)]
    num_images = sum(len(images) for images in calibration)
    return {name: total / num_images for name, total in zip(names, totals, strict=True)}


def quantize_openvino(
    source: Path,
    target: Path,
    calibration: Sequence[np.ndarray],
    *,
    parts: Collection[Part] = INT8_PARTS,
    seven_bits: bool = False,
) -> Quantized:
    """Quantize an ONNX file for OpenVINO, which computes the nodes of `quantize_onnx` in 8 bits as well.

    NNCF's own quantizer was as fast and lost more: docs/research/int8.md.

    Args:
        source: as for `quantize_onnx`.
        target: the .xml file to write; the .bin file comes beside it.
        calibration: as for `quantize_onnx`.
        parts: as for `quantize_onnx`.
        seven_bits: as for `quantize_onnx`.

    Raises:
        ConfigError: there are no such parts, or no calibration images.
        ExportError: `source` cannot be read, or is no graph of this package.
        MissingDependencyError: onnx or openvino is not installed.
    """
    openvino = require("openvino", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantized = quantize_onnx(source, file, calibration, parts=parts, seven_bits=seven_bits)
        model = openvino.convert_model(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, target, compress_to_fp16=False)
    return quantized._replace(path=target, versions={**quantized.versions, "openvino": version("openvino")})


def quantize_within(
    quantize: Quantize,
    source: Path,
    target: Path,
    calibration: Sequence[np.ndarray],
    evaluate: Callable[[Path], float],
    *,
    reference: float,
    max_drop: float,
    parts: Collection[Part] = INT8_PARTS,
) -> Accepted:
    """Quantize as much as accuracy allows.

    If all of `parts` together cost too much, each is measured alone, and the most sensitive ones are left in float one
    after another until the rest fits.

    Args:
        quantize: `quantize_onnx` or `quantize_openvino`.
        source: as for `quantize`.
        target: as for `quantize`; not written if nothing fits.
        calibration: as for `quantize`.
        evaluate: measures the AP, in [0, 1], of a quantized file.
        reference: the AP of the float network.
        max_drop: the AP that may be lost, in points: hundredths.
        parts: the parts to quantize at most.

    Raises:
        ExportError: even the least sensitive part alone costs too much; the message names the best that was found.
    """
    wanted = _checked(parts, calibration)
    trials: dict[tuple[Part, ...], float] = {}
    made: dict[tuple[Part, ...], Quantized] = {}
    target.parent.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:

        def fits(tried: tuple[Part, ...]) -> bool:
            if tried not in trials:
                made[tried] = quantize(source, Path(folder) / "-".join(tried) / target.name, calibration, parts=tried)
                trials[tried] = evaluate(made[tried].path)
                logger.info("int8 in %s: AP %.3f, in float %.3f", " and ".join(tried), trials[tried], reference)
            return round(100 * (reference - trials[tried]), 6) <= max_drop

        tried: tuple[Part, ...] = wanted
        costs: dict[Part, str] = {}
        while not fits(tried):
            if len(tried) == 1:
                raise ExportError(_refusal(trials, reference, max_drop))
            for part in tried:
                fits((part,))
            worst = min(tried, key=lambda part: trials[(part,)])
            costs[worst] = f"costs {100 * (reference - trials[(worst,)]):.1f} points of AP alone"
            tried = tuple(part for part in tried if part != worst)
        for file in made[tried].path.parent.iterdir():
            file.replace(target.parent / file.name)
    quantized = made[tried]._replace(path=target, in_float={**made[tried].in_float, **costs})
    return Accepted(quantized, trials[tried], tuple(Trial(*each) for each in trials.items()))


def _checked(parts: Collection[Part], calibration: Sequence[np.ndarray]) -> tuple[Part, ...]:
    """The parts in order."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ConfigError(f"parts: got {', '.join(unknown) or 'none'}, expected some of {', '.join(PARTS)}.")
    if not len(calibration):
        raise ConfigError("calibration: got no images, expected some of the training images; 100 to 300 are enough.")
    return tuple(part for part in PARTS if part in parts)


def _quantized(
    path: Path,
    parts: tuple[Part, ...],
    num_int8: int,
    num_float: int,
    calibration: Sequence[np.ndarray],
    packages: Sequence[str],
) -> Quantized:
    in_float: dict[Part, str] = {part: IN_FLOAT.get(part, "as asked") for part in PARTS if part not in parts}
    versions = {package: version(package) for package in packages}
    return Quantized(path, parts, in_float, num_int8, num_float, len(calibration), versions)


def _refusal(trials: Mapping[tuple[Part, ...], float], reference: float, max_drop: float) -> str:
    best = max(trials, key=lambda parts: trials[parts])
    drop = 100 * (reference - trials[best])
    return (
        f"int8 costs too much: at best {drop:.1f} points of AP, from {100 * reference:.2f} to "
        f"{100 * trials[best]:.2f} with only {' and '.join(best)} in int8, and max_drop is {max_drop:g}. Raise "
        'max_drop, give more calibration images, or use precision="fp16".'
    )


def _is_quantizable(node: onnx.NodeProto, part: Part, constants: Collection[str]) -> bool:
    """Whether ONNX Runtime should compute a node in 8 bits: matrix products everywhere, in convolutional parts more."""
    if node.op_type in MATRIX_PRODUCTS:
        return node.input[1] in constants
    if node.op_type in CONVOLUTIONS:
        return True
    return part in ("backbone", "ccff") and node.op_type in AROUND_CONVOLUTIONS


def _reader(calibration: Sequence[np.ndarray], input_name: str) -> Any:
    """What ONNX Runtime's calibration asks for inputs; shows progress."""
    reader = require("onnxruntime.quantization", "export").CalibrationDataReader
    console = Console(stderr=True)
    images = iter(
        track(calibration, "Measuring ranges", console=console, transient=True, disable=not console.is_interactive)
    )

    class Reader(reader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(images, None)
            return None if image is None else {input_name: image}

    return Reader()


def _as_int8(entries: Mapping[str, str]) -> dict[str, str]:
    """The metadata of the float file, with another precision."""
    if METADATA_KEY not in entries:
        return dict(entries)
    metadata = ExportMetadata.from_json(entries[METADATA_KEY])._replace(precision="int8")
    return {**entries, METADATA_KEY: metadata.to_json()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of ONNX Runtime's quantizer."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
