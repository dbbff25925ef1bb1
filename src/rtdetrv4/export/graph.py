"""Rewrite ONNX graphs where PyTorch has no operator for what the runtime can do in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rtdetrv4.errors import require

if TYPE_CHECKING:
    import onnx


def pad_in_pools(model: onnx.ModelProto) -> None:
    """Let max pooling do the zero padding before it, in place, where its input is not negative.

    PyTorch pads both sides alike, so HGNetV2's stem pads one side by itself. That copies its largest map, and makes
    ONNX Runtime change the layout before and after. Pooling pads with −∞ instead of 0, which is the same for a map that
    has been clamped to at least 0, because every window has an element of the map itself.
    """
    onnx = require("onnx", "export")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}

    def value(name: str) -> np.ndarray | None:
        return onnx.numpy_helper.to_array(constants[name]) if name in constants else None

    for pool in list(graph.node):
        pad = producers.get(pool.input[0]) if pool.op_type == "MaxPool" else None
        if pad is None or pad.op_type != "Pad" or not _is_clamped(producers.get(pad.input[0]), value):
            continue
        settings = {each.name: onnx.helper.get_attribute_value(each) for each in pool.attribute}
        kernel, before = settings["kernel_shape"], settings.get("pads", [0, 0, 0, 0])
        added = value(pad.input[1])
        filled = value(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
        mode = next((each.s for each in pad.attribute if each.name == "mode"), b"constant")
        if mode != b"constant" or added is None or filled is None or filled.any() or len(pad.input) > 3:
            continue
        if len(added) != 8 or added[[0, 1, 4, 5]].any() or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        pads = [int(n) for n in np.array(before) + added[[2, 3, 6, 7]]]
        if min(pads) < 0 or any(side >= kernel[k % 2] for k, side in enumerate(pads)):
            continue
        kept = [each for each in pool.attribute if each.name != "pads"]
        del pool.attribute[:]
        pool.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])
        pool.input[0] = pad.input[0]
        if not any(pad.output[0] in node.input for node in graph.node):
            graph.node.remove(pad)


def _is_clamped(node: onnx.NodeProto | None, value: Callable[[str], np.ndarray | None]) -> bool:
    """Whether a node's output cannot be negative."""
    if node is None or node.op_type not in ("Relu", "Clip"):
        return False
    if node.op_type == "Relu":
        return True
    low = value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    return low is not None and bool(low >= 0)
