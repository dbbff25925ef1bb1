"""Int8 files compute some parts in 8 bits, leave the others as they were, and are as accurate as is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import golden
from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.export.int8 import Quantized, correct_biases, quantize_onnx, quantize_openvino, quantize_within
from rtdetrv4.export.parts import PARTS, GraphNode, Part, onnx_graph, openvino_graph, parts_of
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.engines.openvino import the_core

from .conftest import Exported


@pytest.fixture(scope="module")
def calibration() -> list[np.ndarray]:
    return [golden.image(seed, 64, 64)[None] for seed in range(8)]


@pytest.fixture(scope="module")
def quantized(square: Exported, calibration: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    return quantize_onnx(square.path, tmp_path_factory.mktemp("int8") / "animals-int8.onnx", calibration)


def kinds_of(path: Path) -> dict[Part, Counter[str]]:
    graph = onnx_graph(onnx.load(path))
    parts = parts_of(graph)
    return {part: Counter(graph[name].kind for name in graph if parts[name] == part) for part in PARTS}


def num_products(kinds: Counter[str]) -> int:
    """Matrix products with weights: of those of an attention layer, two have none."""
    return kinds["MatMul"] + kinds["Gemm"] - 2 * kinds["Softmax"]


def num_products_with_weights(attention: Counter[str]) -> int:
    """Of all matrix products but queries · keys and weights · values."""
    return attention["MatMul"] + attention["Gemm"] - 2


def test_parts_are_found_by_structure(square: Exported, rectangle: Exported) -> None:
    for path in (square.path, rectangle.path):
        kinds = kinds_of(path)
        assert kinds["aifi"]["Softmax"] == 1
        assert kinds["aifi"]["LayerNormalization"] == 2
        assert num_products(kinds["aifi"]) >= 4  # queries with keys, values, output, and two of the MLP
        assert kinds["query_selection"]["TopK"] == 1
        assert kinds["query_selection"]["LayerNormalization"] >= 1
        assert kinds["decoder"]["GridSample"] > 0
        assert [kinds[part]["Conv"] > 0 for part in PARTS] == [True, False, True, False, False]
        assert kinds["ccff"]["Resize"] > 0


def test_a_lite_encoder_begins_with_the_first_of_its_pools() -> None:
    chain = ("stem Conv", "shortcut AveragePool", "projection Conv", "pool AveragePool", "coarse Conv", "mix Conv")
    chain += ("up Resize", "fpn Conv", "pool2 AveragePool", "down Conv", "scores MatMul", "selection TopK")
    names = [each.split()[0] for each in chain]
    graph = {
        name: GraphNode(each.split()[1], (before,))
        for name, each, before in zip(names, chain, ["", *names[:-1]], strict=True)
    }
    graph["samples"] = GraphNode("GridSample", ("down", "selection"))
    parts = parts_of(graph)
    assert [parts[name] for name in ("stem", "shortcut", "projection")] == ["backbone"] * 3
    assert {parts[name] for name in ("coarse", "mix", "up", "fpn", "pool2", "down")} == {"ccff"}
    assert (parts["scores"], parts["selection"], parts["samples"]) == ("query_selection", "query_selection", "decoder")


def test_a_graph_without_the_parts_is_refused() -> None:
    with pytest.raises(ExportError, match="no top-k"):
        parts_of({"a": GraphNode("Conv", ("",))})
    with pytest.raises(ExportError, match="no hybrid encoder"):
        parts_of({"a": GraphNode("Conv", ("",)), "b": GraphNode("TopK", ("a",))})


def test_what_is_in_int8(square: Exported, quantized: Quantized) -> None:
    before = kinds_of(square.path)
    convolutions = before["backbone"]["Conv"] + before["ccff"]["Conv"]
    assert quantized.num_int8 == convolutions + num_products(before["aifi"])
    assert quantized.parts == ("backbone", "aifi", "ccff")
    assert set(quantized.in_float) == {"query_selection", "decoder"}
    assert quantized.num_images == 8
    after = kinds_of(quantized.path)
    assert after["decoder"] == before["decoder"]
    assert open_engine(quantized.path).metadata == open_engine(square.path).metadata._replace(precision="int8")


def test_a_part_without_convolutions(square: Exported, calibration: list[np.ndarray], tmp_path: Path) -> None:
    found = quantize_onnx(square.path, tmp_path / "a.onnx", calibration[:1], parts=["aifi"], seven_bits=True)
    assert found.num_int8 == num_products(kinds_of(square.path)["aifi"])
    assert found.in_float["backbone"] == "as asked"
    steps = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer]
    assert max(np.abs(array.astype(int)).max() for array in steps if array.dtype == np.int8 and array.ndim == 2) == 64


def test_weights_are_rounded_to_127_steps_of_each_channel(square: Exported, quantized: Quantized) -> None:
    before, after = onnx.load(square.path).graph, onnx.load(quantized.path).graph
    floats = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in before.initializer}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.initializer}
    dequantized = {node.output[0]: node for node in after.node if node.op_type == "DequantizeLinear"}
    weight = next(node for node in before.node if node.op_type == "Conv").input[1]
    node = next(dequantized[node.input[1]] for node in after.node if node.op_type == "Conv")
    steps, scale = constants[node.input[0]], constants[node.input[1]]
    np.testing.assert_allclose(scale, np.abs(floats[weight]).max(axis=(1, 2, 3)) / 127, rtol=1e-5)
    np.testing.assert_array_equal(constants[node.input[2]], 0)
    error = np.abs(steps * scale[:, None, None, None] - floats[weight])
    assert steps.dtype == np.int8
    assert (error <= 0.5001 * scale[:, None, None, None]).all()


def test_biases_make_up_for_rounded_weights() -> None:
    # Weights of 127 and 0.4 steps: the second is rounded to 0, so that at a mean input of 5 the sum loses 2 steps. The
    # kernel after it, of 127 and -0.7 steps, is rounded to -1 step, so that at a mean input of 10 it loses 3 steps.
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    step = 1 / 127
    first = np.float32([1, 0.4 * step]).reshape(1, 2, 1, 1)
    second = np.float32([[1, -0.7 * step]]).reshape(1, 1, 1, 2)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "first", "bias"], ["middle"], name="a"),
            helper.make_node("Conv", ["middle", "second"], ["end"], name="b"),
        ],
        "g",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 2, 1, 2])],
        [helper.make_tensor_value_info("end", onnx.TensorProto.FLOAT, [1, 1, 1, 1])],
        [
            numpy_helper.from_array(first, "first"),
            numpy_helper.from_array(second, "second"),
            numpy_helper.from_array(np.float32([10 - 3 - 5 * 0.4 * step]), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    images = [np.float32([[2, 4], [5, 5]]).reshape(1, 2, 1, 2), np.float32([[3, 3], [4, 6]]).reshape(1, 2, 1, 2)]
    correct_biases(model, ["a", "b"], images)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    corrected = [found[node.input[2]].item() for node in model.graph.node]
    assert corrected == pytest.approx([10 - 3, 0.3 * step * 10], abs=1e-6)


def test_nearly_the_same_is_found(square: Exported, quantized: Quantized, calibration: list[np.ndarray]) -> None:
    images = np.concatenate(calibration[:4])
    expected, actual = open_engine(square.path)(images), open_engine(quantized.path)(images)
    # On average: where rounding selects another query, more changes. 0 would mean that nothing was rounded.
    assert 0 < np.abs(expected["scores"] - actual["scores"]).mean() < 0.03


def test_openvino_leaves_the_same_parts_in_float(
    square: Exported, calibration: list[np.ndarray], tmp_path: Path
) -> None:
    found = quantize_openvino(square.path, tmp_path / "animals.xml", calibration)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["animals.bin", "animals.xml"]
    before = kinds_of(square.path)
    assert found.num_int8 == before["backbone"]["Conv"] + before["ccff"]["Conv"] + num_products(before["aifi"])
    graph = openvino_graph(the_core().read_model(found.path))
    parts = parts_of(graph)
    rounded = Counter(parts[name] for name, node in graph.items() if node.kind == "FakeQuantize")
    assert rounded["decoder"] == 0 < rounded["backbone"]
    request = the_core().compile_model(found.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.concatenate(calibration[:4])
    assert 0 < np.abs(request(images)["scores"] - open_engine(square.path)(images)["scores"]).mean() < 0.03


class Costs:
    """Stands in for a quantizer and an evaluation: every part has a price in AP."""

    def __init__(self, **prices: float) -> None:
        self.prices = prices
        self.tried: list[tuple[Part, ...]] = []

    def quantize(
        self, source: Path, target: Path, calibration: Sequence[np.ndarray], *, parts: Collection[Part]
    ) -> Quantized:
        target.parent.mkdir(parents=True)
        target.write_text(" ".join(parts))
        target.with_suffix(".bin").write_text("weights")
        self.tried.append(tuple(parts))
        left = {part: "by default" for part in PARTS if part not in parts}
        return Quantized(target, tuple(parts), left, 1, 1, len(calibration), {})

    def evaluate(self, path: Path) -> float:
        return 0.5 - sum(self.prices.get(part, 0) for part in path.read_text().split())


def test_all_parts_are_kept_if_they_cost_little(tmp_path: Path) -> None:
    costs = Costs(backbone=0.002, ccff=0.002)
    target = tmp_path / "new" / "a.xml"
    found = quantize_within(
        costs.quantize, Path("a.onnx"), target, [np.zeros(1)], costs.evaluate, reference=0.5, max_drop=0.5
    )
    assert costs.tried == [("backbone", "aifi", "ccff")]
    assert found.ap == pytest.approx(0.496)
    assert found.quantized.path == target
    assert sorted(file.name for file in target.parent.iterdir()) == ["a.bin", "a.xml"]


def test_the_most_sensitive_parts_are_left_in_float(tmp_path: Path) -> None:
    costs = Costs(backbone=0.004, aifi=0.001, ccff=0.02)
    target = tmp_path / "a.xml"
    found = quantize_within(
        costs.quantize, Path("a.onnx"), target, [np.zeros(1)], costs.evaluate, reference=0.5, max_drop=0.5
    )
    assert costs.tried == [("backbone", "aifi", "ccff"), ("backbone",), ("aifi",), ("ccff",), ("backbone", "aifi")]
    assert target.read_text() == "backbone aifi"
    assert found.ap == pytest.approx(0.495)
    assert found.quantized.in_float["ccff"] == "costs 2.0 points of AP alone"
    assert [trial.ap for trial in found.trials] == pytest.approx([0.475, 0.496, 0.499, 0.48, 0.495])


def test_what_costs_too_much_is_refused(tmp_path: Path) -> None:
    costs = Costs(backbone=0.03, aifi=0.012, ccff=0.02)
    with pytest.raises(ExportError, match=r"at best 1\.2 points of AP, from 50\.00 to 48\.80 with only aifi in int8"):
        quantize_within(
            costs.quantize,
            Path("a.onnx"),
            tmp_path / "a.xml",
            [np.zeros(1)],
            costs.evaluate,
            reference=0.5,
            max_drop=0.5,
        )
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(square: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got no images"):
        quantize_onnx(square.path, tmp_path / "a.onnx", [])
    with pytest.raises(ConfigError, match="got neck, expected some of backbone, aifi"):
        quantize_onnx(square.path, tmp_path / "a.onnx", [np.zeros(1)], parts=["neck"])  # pyright: ignore[reportArgumentType]
    (tmp_path / "b.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"onnx cannot load .*b\.onnx"):
        quantize_onnx(tmp_path / "b.onnx", tmp_path / "a.onnx", [np.zeros(1)])
