"""Rewritten graphs compute the same, and are left alone where they would not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rtdetrv4.export.graph import pad_in_pools

IMAGES = np.random.default_rng(0).normal(size=(1, 2, 5, 6)).astype(np.float32)


def stem(low: float | None = 0.0, *, fill: float = 0.0, shared: bool = False) -> onnx.ModelProto:
    """A clamp (a ReLU if `low` is None), one-sided padding, and pooling; if `shared`, the padding has another user."""
    clamp = ("Relu", ["x"]) if low is None else ("Clip", ["x", "low"])
    nodes = [
        helper.make_node(clamp[0], clamp[1], ["clamped"]),
        helper.make_node("Pad", ["clamped", "pads", "fill"], ["padded"], mode="constant"),
        helper.make_node("MaxPool", ["padded"], ["pooled"], kernel_shape=[2, 2], ceil_mode=1),
    ]
    constants = {
        "low": np.float32(low or 0),
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "fill": np.float32(fill),
    }
    outputs = [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, (1, 2, 5, 6))]
    if shared:
        outputs.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, (1, 2, 6, 7)))
        nodes.append(helper.make_node("Neg", ["padded"], ["negative"]))
    graph = helper.make_graph(
        nodes,
        "stem",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGES.shape)],
        outputs,
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": IMAGES})


@pytest.mark.parametrize("low", [None, 0.0, 0.3])
def test_pools_pad_maps_that_are_not_negative(low: float | None) -> None:
    model = stem(low)
    expected = run(model)
    pad_in_pools(model)
    assert [node.op_type for node in model.graph.node] == ["Relu" if low is None else "Clip", "MaxPool"]
    np.testing.assert_array_equal(run(model), expected)


def test_padding_stays_for_others() -> None:
    model = stem(shared=True)
    expected = run(model)
    pad_in_pools(model)
    assert model.graph.node[2].input[0] == "clamped"
    for actual, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("change", [{"low": -0.3}, {"fill": 1.0}])
def test_padding_that_can_win_stays(change: dict[str, float]) -> None:
    model = stem(**change)  # type: ignore[arg-type]
    before = model.SerializeToString()
    pad_in_pools(model)
    assert model.SerializeToString() == before
