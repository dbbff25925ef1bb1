"""A float16 file finds the same, and keeps coordinates and what sums or compares many values in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import golden
from rtdetrv4.errors import ExportError
from rtdetrv4.export.half import Halved, _islands, half_onnx
from rtdetrv4.runtime.engines import open_engine

from .conftest import Exported

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def halved(square: Exported, tmp_path_factory: pytest.TempPathFactory) -> Halved:
    return half_onnx(square.path, tmp_path_factory.mktemp("half") / "animals-fp16.onnx")


@pytest.fixture(scope="module")
def typed(halved: Halved) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(onnx.load(halved.path), strict_mode=True)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return constants | {value.name: value.type.tensor_type.elem_type for value in values}


def test_the_same_is_found(square: Exported, halved: Halved) -> None:
    images = np.stack([golden.image(seed, 64, 64) for seed in range(4)])
    expected, actual = open_engine(square.path)(images), open_engine(halved.path)(images)
    # On average: where rounding selects another query, more changes.
    assert 0 < np.abs(actual["scores"] - expected["scores"]).mean() < 3e-3
    best, near = expected["boxes"][:, 0], actual["boxes"][:, :5]
    assert np.abs(near - best[:, None]).max(axis=-1).min(axis=-1).max() < 0.02


def test_the_file_is_half_as_large_and_says_what_it_is(square: Exported, halved: Halved) -> None:
    engine = open_engine(halved.path)
    assert engine.metadata.precision == "fp16"
    assert engine.metadata._replace(precision="fp32") == open_engine(square.path).metadata
    assert halved.path.stat().st_size < 0.65 * square.path.stat().st_size
    model = onnx.load(halved.path)
    assert {entry.key: entry.value for entry in model.metadata_props}["teacher"] == "dinov3"
    ends = (*model.graph.input, *model.graph.output)
    assert {end.name: end.type.tensor_type.elem_type for end in ends} == {
        "images": FLOAT,
        "labels": onnx.TensorProto.INT64,
        "boxes": FLOAT,
        "scores": FLOAT,
    }


def test_layers_are_in_float16_and_islands_in_float32(halved: Halved, typed: onnx.ModelProto) -> None:
    types = types_of(typed)
    found: dict[str, set[int]] = {}
    for node in typed.graph.node:
        floats = {types[name] for name in (*node.input, *node.output) if types.get(name) in (FLOAT, HALF)}
        if node.op_type not in ("Cast", "Resize"):
            assert len(floats) <= 1, f"{node.name} mixes float types"
        found.setdefault(node.op_type, set()).update(floats)
    assert found["Conv"] == {HALF}
    for kind in ("LayerNormalization", "Softmax", "TopK", "GridSample"):
        assert found[kind] == {FLOAT}
    # The only matrix products in float32 are the integrals over the bins of an edge.
    producers = {output: node.op_type for node in typed.graph.node for output in node.output}
    full = [node for node in typed.graph.node if node.op_type == "MatMul" and types[node.output[0]] == FLOAT]
    assert len(full) == 2  # decoder layers
    assert {producers[node.input[0]] for node in full} == {"Softmax"}
    assert halved.num_half > halved.num_full > 0


def test_coordinates_are_not_rounded_on_their_way(typed: onnx.ModelProto) -> None:
    types = types_of(typed)
    producers = {output: node for node in typed.graph.node for output in node.output}
    grids = [node.input[1] for node in typed.graph.node if node.op_type == "GridSample"]
    waiting, seen = [*grids, "boxes"], set()
    while waiting:
        name = waiting.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Cast" and types.get(node.input[0]) == HALF:
            before = producers[node.input[0]].op_type
            assert before in ("Add", "MatMul", "Gemm", "Reshape"), f"a cast after {before}"  # a layer and its bias
            continue
        waiting.extend(node.input)
    assert len(seen) > 50


def test_numbers_too_large_for_float16_stay_in_float32(tmp_path: Path) -> None:
    helper = onnx.helper
    weights = [onnx.numpy_helper.from_array(np.float32([[value]]), f"w{value}") for value in (2, 100_000)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w2"], ["a"]), helper.make_node("MatMul", ["a", "w100000"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    half_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "b.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.float32([[0.5]])})[0].item() == 100_000
    assert {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer} == {
        "w100000": FLOAT,
        "w2_half": HALF,
    }


def test_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"onnx cannot load .*a\.onnx"):
        half_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_squares_of_an_rms_norm_stay_in_float32() -> None:
    """300² is more than float16 has; as an average over channels it would be infinite."""
    helper = onnx.helper
    nodes = [
        helper.make_node("MatMul", ["x", "identity"], ["h"], "product"),
        helper.make_node("Pow", ["h", "two"], ["squares"], "square"),
        helper.make_node("ReduceMean", ["squares", "axes"], ["mean"], "mean", keepdims=1),
        helper.make_node("Add", ["mean", "eps"], ["sum"], "plus"),
        helper.make_node("Sqrt", ["sum"], ["root"], "root"),
        helper.make_node("Reciprocal", ["root"], ["inverse"], "inverse"),
        helper.make_node("Mul", ["h", "inverse"], ["normalized"], "scaled"),
        helper.make_node("MatMul", ["normalized", "identity"], ["y"], "last"),
    ]
    constants = {
        "identity": np.eye(4, dtype=np.float32),
        "two": np.array(2, dtype=np.float32),
        "eps": np.array(1e-6, dtype=np.float32),
        "axes": np.array([-1]),
    }
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    full = _islands(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    assert {"square", "mean", "plus", "root", "inverse"} <= full
    assert not {"product", "scaled", "last"} & full
