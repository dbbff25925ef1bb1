"""The parts of an exported graph, found by how its operators are connected.

Names of nodes change with every version of an exporter, so none is looked at. What does not change: query selection
ends in the first top-k; the decoder samples the pyramid; the encoder's attention has the only softmax before that
top-k, or the last one if the backbone attends too; and the encoder's convolutions come after it. DEIMv2's lite encoder
does not attend; it begins with the first of its two average pools, the last ones before that top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from rtdetrv4.errors import ExportError

if TYPE_CHECKING:
    import onnx
    import openvino

Part = Literal["backbone", "aifi", "ccff", "query_selection", "decoder"]
PARTS: tuple[Part, ...] = get_args(Part)
"""From the image to the boxes. The backbone includes the projections of its maps to the encoder's width; the decoder
includes the boxes of the selected queries and the post-processing."""

CONVOLUTIONS = frozenset({"Conv", "Convolution", "GroupConvolution"})
SOFTMAXES = frozenset({"Softmax", "SoftMax", "Attention", "ScaledDotProductAttention"})
POOLS = frozenset({"AveragePool", "AvgPool"})


class GraphNode(NamedTuple):
    """An operator of a graph, whatever the format."""

    kind: str
    """Its type, in the words of the format."""
    inputs: tuple[str, ...]
    """The names of the nodes that produce its inputs, in order; "" where that is no node, but an input of the graph or
    a constant."""


Graph = Mapping[str, GraphNode]
"""Nodes by name, each after those whose outputs it takes."""


def onnx_graph(model: onnx.ModelProto) -> Graph:
    """The operators of an ONNX file; those whose names are missing or not unique get names."""
    names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}_unnamed"
        names.add(node.name)
    producers = {output: node.name for node in model.graph.node for output in node.output}
    return {
        node.name: GraphNode(node.op_type, tuple(producers.get(name, "") for name in node.input))
        for node in model.graph.node
    }


def openvino_graph(model: openvino.Model) -> Graph:
    """The operators of an OpenVINO model by their friendly names; its constants, inputs and outputs are left out."""

    def name(node: openvino.Node) -> str:
        return "" if node.get_type_name() in ("Constant", "Parameter") else node.get_friendly_name()

    return {
        name(node): GraphNode(node.get_type_name(), tuple(name(value.get_node()) for value in node.input_values()))
        for node in model.get_ordered_ops()
        if name(node) and node.get_type_name() != "Result"
    }


def parts_of(graph: Graph) -> dict[str, Part]:
    """The part that each node belongs to.

    Raises:
        ExportError: this is no graph of a detector of this package.
    """
    selection = next((name for name, node in graph.items() if node.kind == "TopK"), None)
    if selection is None:
        raise ExportError("the graph has no top-k that selects queries; expected a file of Detector.export")
    scoring = upstream(graph, [selection])
    sampled = [node.inputs[0] for node in graph.values() if node.kind == "GridSample"]
    convolutions = [name for name in scoring if graph[name].kind in CONVOLUTIONS]
    # Without grid samples, because they are replaced for some runtimes, the activations of the last maps count as query
    # selection, which changes little.
    pyramid = scoring & upstream(graph, sampled or convolutions)
    attention = _last_attention(graph, pyramid)
    start = attention or _first_pool(graph, pyramid)
    if not convolutions or not start:
        raise ExportError("the graph has no hybrid encoder before its queries; expected a file of Detector.export")

    def is_no_convolution(name: str) -> bool:
        return name in pyramid and graph[name].kind not in CONVOLUTIONS

    fused = downstream(graph, start) & pyramid
    aifi = upstream(graph, downstream(graph, attention, is_no_convolution), is_no_convolution)

    def part(name: str) -> Part:
        if name not in scoring:
            return "decoder"
        if name not in pyramid:
            return "query_selection"
        if name in aifi:
            return "aifi"
        return "ccff" if name in fused else "backbone"

    return {name: part(name) for name in graph}


def upstream(graph: Graph, names: Iterable[str], through: Callable[[str], bool] = lambda _: True) -> set[str]:
    """The given nodes and all that they depend on by way of nodes that `through` lets pass."""
    found: set[str] = set()
    waiting = [name for name in names if name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(each for each in graph[name].inputs if each and through(each))
    return found


def downstream(graph: Graph, names: Iterable[str], through: Callable[[str], bool] = lambda _: True) -> set[str]:
    """The given nodes and all that depend on them by way of nodes that `through` lets pass."""
    found = set(names)
    for name, node in graph.items():
        if through(name) and not found.isdisjoint(node.inputs):
            found.add(name)
    return found


def _last_attention(graph: Graph, pyramid: set[str]) -> set[str]:
    """The softmax of the encoder's attention; empty if there is none."""
    softmaxes = [name for name, node in graph.items() if name in pyramid and node.kind in SOFTMAXES]
    return set(softmaxes[-1:])


def _first_pool(graph: Graph, pyramid: set[str]) -> set[str]:
    """The pool with which a lite encoder begins; empty if there is none."""
    return set([name for name, node in graph.items() if name in pyramid and node.kind in POOLS][-2:][:1])
