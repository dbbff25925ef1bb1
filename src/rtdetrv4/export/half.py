"""ONNX files in float16, in which some operators stay in float32.

Near 1, float16 has steps of 2⁻¹¹ to 2⁻¹⁰: enough for features, not for coordinates. In float32 remain norms, softmax
and top-k, the coordinates that are sampled, and everything between the last layers of the heads and the boxes and
scores, with the integral over edge distributions. onnxruntime's converter (`onnxruntime.transformers.float16`) rounds
between any two such operators, so it is not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rtdetrv4.errors import ExportError, first_line, require
from rtdetrv4.export.parts import CONVOLUTIONS, SOFTMAXES, Graph, onnx_graph, upstream
from rtdetrv4.outputs import write_whole
from rtdetrv4.runtime.export_metadata import METADATA_KEY, ExportMetadata

if TYPE_CHECKING:
    import onnx

FULL = SOFTMAXES | {"GlobalAveragePool", "GridSample", "LayerNormalization", "ReduceMean", "TopK"}
"""Operators that sum many values, compare nearly equal ones, or take coordinates."""
SOURCES = frozenset({"Cast", "Constant", "ConstantOfShape", "Range"})
"""Operators whose results have the type that they state."""
LAYERS = CONVOLUTIONS | {"Gemm", "GridSample", "LayerNormalization", "MatMul"}
"""Operators that an island of coordinates or scores begins after."""
FLOAT16_MAX = float(np.finfo(np.float16).max)


class Halved(NamedTuple):
    """A float16 file."""

    path: Path
    num_half: int
    """Operators that compute in float16."""
    num_full: int
    """Operators on floats that stay in float32."""


def half_onnx(source: Path, target: Path) -> Halved:
    """Convert an ONNX file to float16, but for islands in float32; inputs and outputs stay float32.

    Every operator has inputs of one float type, as strongly typed TensorRT requires.

    Args:
        source: a float32 file of `export_model`.
        target: the file to write; it keeps the metadata, with precision "fp16".

    Raises:
        ExportError: `source` cannot be read.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", "export")
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(source), strict_mode=True)
    except Exception as error:  # protobuf's, onnx's, or of the file system
        raise ExportError(f"onnx cannot load {source}: {first_line(error)}") from error
    full = _islands(model)
    halved = _Halving(model, full)
    halved.rewrite()
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY in entries:
        metadata = ExportMetadata.from_json(entries[METADATA_KEY])._replace(precision="fp16")
        onnx.helper.set_model_props(model, {**entries, METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model, full_check=True)
    write_whole(target, lambda file: onnx.save(model, file))
    return Halved(target, halved.num_half, halved.num_full)


def _islands(model: onnx.ModelProto) -> set[str]:
    """The nodes that stay in float32, by name; all nodes have names afterwards."""
    onnx = require("onnx", "export")
    graph = onnx_graph(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node.name for node in model.graph.node for output in node.output}
    integrals: set[str] = set()
    too_large: set[str] = set()
    for node in model.graph.node:
        weights = [onnx.numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
        origin = next(iter(graph[node.name].inputs), "")
        if node.op_type == "MatMul" and weights and origin and graph[origin].kind in SOFTMAXES:
            integrals.add(node.name)  # probabilities by a constant: the expectation over the bins of an edge
        if any(
            array.dtype == np.float32 and (np.abs(array[np.isfinite(array)]) > FLOAT16_MAX).any() for array in weights
        ):
            too_large.add(node.name)

    def is_within(name: str) -> bool:
        return name in integrals or graph[name].kind not in LAYERS

    ends = [producers.get(output.name, "") for output in model.graph.output]
    for node in graph.values():
        if node.kind == "GridSample":
            ends.append(node.inputs[1])
        elif node.kind in ("Floor", "TopK"):
            ends.append(node.inputs[0])
    islands = upstream(graph, [name for name in ends if name and is_within(name)], is_within)
    norms = _root_mean_squares(graph)
    return islands | too_large | norms | {name for name, node in graph.items() if node.kind in FULL | SOURCES}


def _root_mean_squares(graph: Graph) -> set[str]:
    """The nodes between squares, of which float16 has few, and the root of their mean."""
    found: set[str] = set()
    for name, node in graph.items():
        origin = next(iter(node.inputs), "")
        if node.kind == "ReduceMean" and origin and graph[origin].kind == "Pow":
            found |= {name, origin}
        elif node.kind in ("Add", "Sqrt", "Reciprocal") and not found.isdisjoint(node.inputs):
            found.add(name)
    return found


class _Halving:
    """Rewrites a graph in place, node by node, with casts where float types meet."""

    def __init__(self, model: onnx.ModelProto, full: set[str]) -> None:
        self._onnx = require("onnx", "export")
        self._graph = model.graph
        self._full = full
        float32 = self._onnx.TensorProto.FLOAT
        values = (*self._graph.value_info, *self._graph.input, *self._graph.output)
        self._floats = {value.name for value in values if value.type.tensor_type.elem_type == float32}
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer if tensor.data_type == float32}
        self._halves: set[str] = set()
        """Tensors that are float16 now."""
        self._casts: dict[str, str] = {}
        """From a tensor to its copy in the other type."""
        self._nodes: list[onnx.NodeProto] = []
        self.num_half = self.num_full = 0

    def rewrite(self) -> None:
        for node in self._graph.node:
            is_full = node.name in self._full
            is_float = False
            for index, name in enumerate(node.input):
                if name not in self._floats and name not in self._constants:
                    continue
                is_float = True
                # The scales of a Resize are float32, whatever it resizes.
                if not (node.op_type == "Resize" and index):
                    node.input[index] = self._as(name, half=not is_full)
            self._nodes.append(node)
            outputs = [name for name in node.output if name in self._floats]
            if not is_full:
                self._halves.update(outputs)
            if is_float and not is_full:
                self.num_half += 1
            elif is_float or outputs:
                self.num_full += node.op_type not in SOURCES
        self._finish()

    def _as(self, name: str, *, half: bool) -> str:
        """The name of a tensor in the wanted type."""
        if (name in self._halves) == half:
            return name
        if name not in self._casts:
            self._casts[name] = f"{name}_{'half' if half else 'full'}"
            if name in self._constants:
                array = self._onnx.numpy_helper.to_array(self._constants[name]).astype(np.float16)
                self._graph.initializer.append(self._onnx.numpy_helper.from_array(array, self._casts[name]))
            else:
                types = self._onnx.TensorProto
                self._nodes.append(
                    self._onnx.helper.make_node(
                        "Cast",
                        [name],
                        [self._casts[name]],
                        name=f"{self._casts[name]}_cast",
                        to=types.FLOAT16 if half else types.FLOAT,
                    )
                )
        return self._casts[name]

    def _finish(self) -> None:
        """Put the nodes into the graph, and drop constants that none of them takes."""
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        for field, content in (("node", self._nodes), ("initializer", kept), ("value_info", ())):
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(content)
