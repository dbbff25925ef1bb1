"""Exported files compute what PyTorch computes, at every batch size, and say how to use them."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import golden
from rtdetrv4 import Detector
from rtdetrv4.assembly import create_model
from rtdetrv4.config import VARIANTS
from rtdetrv4.distillation import DistillationStudent, Injector
from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.export import GraphOptions
from rtdetrv4.models import fuse, postprocess
from rtdetrv4.models.deployment import DeployedDeformableAttention
from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.runtime import ExportedDetector, preprocess
from rtdetrv4.runtime.agreement import Listed, compare
from rtdetrv4.runtime.export_report import ExportReport, report_path
from rtdetrv4.runtime.preprocess import view_of
from rtdetrv4.training.checkpoint import save_checkpoint
from rtdetrv4.training.ema import ModelEma
from rtdetrv4.types import ClassMap
from rtdetrv4.weights import COCO, from_released, load_weights, save_weights
from small_training import assert_same

from .conftest import ANIMALS, Exported, export, model_like_a_trained_one


def run(path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images.numpy()}), strict=True))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_detections_at_any_batch_size(square: Exported, batch: int) -> None:
    images = torch.rand(batch, 3, 64, 64)
    actual = run(square.path, images)
    with torch.no_grad():
        output = square.model.eval()(images)
    expected = postprocess(output.logits, output.boxes, torch.ones(1, 2), 300)
    assert actual["labels"].dtype == np.int64
    assert actual["labels"].shape == actual["scores"].shape == (batch, 3 * (64 + 16 + 4))
    assert actual["boxes"].shape == (batch, 252, 4)
    np.testing.assert_allclose(actual["scores"], expected.scores, atol=1e-5)
    for image in range(batch):
        theirs, ours = (
            Listed(np.asarray(scores[image])[:, None], np.asarray(labels[image]), 64 * np.asarray(boxes[image]))
            for scores, labels, boxes in (expected, (actual["scores"], actual["labels"], actual["boxes"]))
        )
        result = compare(theirs, ours)
        assert result.num_lost == 0
        assert result.max_box_px < 0.01


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_raw_queries_of_a_rectangle(rectangle: Exported, batch: int) -> None:
    actual = run(rectangle.path, torch.rand(batch, 3, 320, 512))
    assert actual["logits"].shape == (batch, 300, 3)
    assert actual["boxes"].shape == (batch, 300, 4)


def test_the_report_lies_beside_the_file(square: Exported, rectangle: Exported) -> None:
    assert sorted(file.name for file in square.path.parent.iterdir()) == ["animals.onnx", "animals.onnx.report.json"]
    for exported, num in ((square, 252), (rectangle, 300)):
        report = ExportReport.read(report_path(exported.path))
        assert (report.file, report.format, report.precision, report.model) == ("animals.onnx", "onnx", "fp32", "test")
        assert report.batches == (1, 2, 7)
        assert report.num_images == 10
        assert report.num_detections == num * (10 - report.num_undecided)
        assert report.max_box_px < 0.05
        assert report.max_score < 1e-4
        assert report.matched == 1
        assert report.accuracy is None
        assert report.size_bytes == exported.path.stat().st_size
        assert {"torch", "onnxruntime"} <= report.versions.keys()


def test_the_file_says_how_to_use_it(square: Exported, rectangle: Exported) -> None:
    metadata = ExportedDetector(square.path).metadata
    assert (metadata.model, metadata.names, metadata.category_ids) == ("test", *ANIMALS)
    assert (metadata.image_size, metadata.outputs) == ((64, 64), "postprocessed")
    assert ExportedDetector(rectangle.path).metadata.outputs == "raw"
    assert ExportedDetector(rectangle.path).metadata.image_size == (320, 512)
    graph = onnx.load(square.path)
    assert {entry.key: entry.value for entry in graph.metadata_props}["teacher"] == "dinov3"
    assert graph.ir_version == 8, "older runtimes must be able to read it"
    content = square.path.read_bytes()
    assert b".py" not in content, "the exporter notes source files of this machine"


def test_the_runtime_predicts_with_it(square: Exported, rectangle: Exported) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    for path in (square.path, rectangle.path):
        found = ExportedDetector(path).predict([image] * 3, conf=0.0, batch=2, duplicates="keep")
        assert [len(one) for one in found] == [len(found[0])] * 3
        assert found[0].names == ANIMALS.names
        assert len(found[0]) > 100
        assert len(ExportedDetector(path).predict(image, conf=0.0)[0]) < len(found[0])


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_detector_and_exported_file_predict_alike(
    resize: str, square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {
        "model": "test",
        "names": ANIMALS.names,
        "category_ids": ANIMALS.category_ids,
        "image_size": (64, 64),
        "resize": resize,
        "num_queries": 300,
        "trained": True,
        "teacher": {"name": "a teacher", "license": "apache-2.0"},
    }
    save_weights(square.model.state_dict(), tmp_path / "weights.safetensors", facts)
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
    detector = Detector(weights=tmp_path / "weights.safetensors", device="cpu")
    path = detector.export()
    assert path == tmp_path / "weights.onnx"
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (entries["teacher"], entries["teacher_license"]) == ("a teacher", "apache-2.0")

    image = (255 * golden.image(3, 90, 150)).astype(np.uint8).transpose(1, 2, 0)
    counts = []
    for duplicates in ("keep", "drop"):
        ours, theirs = (
            each.predict(image, conf=0.2, duplicates=duplicates)[0] for each in (detector, ExportedDetector(path))
        )
        assert theirs.names == ours.names
        np.testing.assert_array_equal(theirs.class_id, ours.class_id)
        np.testing.assert_array_equal(theirs.category_id, ours.category_id)
        assert theirs.category_id.tolist() == [ANIMALS.category_ids[k] for k in theirs.class_id]
        np.testing.assert_allclose(theirs.confidence, ours.confidence, atol=1e-4)
        np.testing.assert_allclose(theirs.xyxy, ours.xyxy, atol=0.1)
        counts.append(len(ours))
    assert counts[0] > counts[1] > 5
    with torch.inference_mode():
        queries = fuse(square.model)(torch.from_numpy(preprocess([image], (64, 64), resize))).boxes[0]  # type: ignore[arg-type]
    view = view_of((90, 150), (64, 64), resize)  # type: ignore[arg-type]
    expected = view.boxes_px(xyxy_from_cxcywh(queries).numpy()).clip(0, [150, 90] * 2)
    assert np.abs(ours.xyxy[:, None] - expected).max(axis=2).min(axis=1).max() < 0.1

    assert detector.export() == path, "an earlier export is replaced"
    report_path(path).unlink()
    with pytest.raises(ConfigError, match="was not exported here"):
        detector.export()


def test_graph(square: Exported) -> None:
    graph = onnx.load(square.path).graph
    deployed = fuse(square.model)
    operators = Counter(node.op_type for node in graph.node)
    assert operators["LayerNormalization"] == sum(isinstance(m, nn.LayerNorm) for m in deployed.modules())
    samplers = [m for m in deployed.modules() if isinstance(m, DeployedDeformableAttention)]
    assert operators["GridSample"] == sum(len(m.num_points) for m in samplers)
    assert operators["BatchNormalization"] == 0
    assert {node.domain for node in graph.node} == {""}
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    # Engines in float16 cannot count to 2049, so indices must never become floats.
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    indices = {node.output[1] for node in graph.node if node.op_type == "TopK"}
    for node in graph.node:
        if indices & set(node.input) and not node.op_type.startswith("Gather"):
            assert node.op_type != "Cast" or node.attribute[0].i in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
            if node.op_type in ("Unsqueeze", "Sub", "Div", "Mod", "Cast"):
                indices |= set(node.output)
            assert onnx.TensorProto.FLOAT not in {types.get(name) for name in node.input if name in types} | (
                {onnx.TensorProto.FLOAT} if node.op_type == "Floor" else set()
            )


def test_nothing_of_distillation_is_in_the_file(
    square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an injector in training, saved and loaded: what is traced is, module for module, what it is without."""
    traced: list[nn.Module] = []
    plain = onnx.load(square.path)
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda module, *_: (traced.append(module), plain)[1])
    student = DistillationStudent(square.model, Injector(32, 8))
    ema = ModelEma(student, 0.9, 0)
    save_checkpoint({"ema": ema.state_dict(), "metadata": {"model": "test"}}, tmp_path / "last.pt")
    model = create_model("test", ANIMALS.num_classes)
    assert load_weights(model, tmp_path / "last.pt").ignored == ("injector.projector.weight", "injector.projector.bias")
    for network in (square.model, model):
        export(network, tmp_path / "m.onnx")
    without, distilled = traced
    assert_same(distilled.state_dict(), without.state_dict())
    assert [(name, repr(module)) for name, module in distilled.named_modules()] == [
        (name, repr(module)) for name, module in without.named_modules()
    ]


def test_the_model_is_left_as_it_was(
    square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_like_a_trained_one().train()
    model.backbone.eval()
    model.double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
    with caplog.at_level(logging.INFO):
        export(model, tmp_path / "m.onnx")
    assert "m.onnx agrees with PyTorch in ONNX Runtime" in caplog.text
    after = model.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert [module.training for module in model.modules()] == modes
    assert model.denoising is not None
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())


def test_a_file_that_disagrees_is_not_handed_out(
    square: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = model_like_a_trained_one()
    with torch.no_grad():
        wrong.decoder.score_heads[1].bias[1] += 0.1
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older export")
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: onnx.load(square.path))
    with pytest.raises(
        ExportError, match=r"m\.onnx: .*not agree with PyTorch in ONNX Runtime .*: \d+ of 252 detections"
    ):
        export(wrong, path)
    assert path.read_bytes() == b"an older export"
    assert list(tmp_path.iterdir()) == [path]


def test_plain_box_decoders_and_fixed_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = replace(
        VARIANTS["test"],
        head="box",
        encoder_blocks="csp",
        activation="relu",
        num_points=(4, 4, 4),
        query_position_layers=3,
    )
    monkeypatch.setattr("rtdetrv4.assembly.models.VARIANTS", {"test": variant})
    model = model_like_a_trained_one()
    path = tmp_path / "v2.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = export(model, path, opset=20, batch=1, simplify=False, options=GraphOptions(num_top=10))
    assert run(path, torch.rand(1, 3, 64, 64))["labels"].shape == (1, 10)
    assert (report.batches, report.num_images) == ((1,), 10)
    assert ExportedDetector(path).predict(np.zeros((64, 64, 3), dtype=np.uint8), conf=0.0, batch=4)

    # A graph that only pretends to take any batch is found out.
    graph = onnx.load(path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    monkeypatch.setattr("rtdetrv4.export.onnx._trace", lambda *_: graph)
    with pytest.raises(ExportError, match="cannot run the file at batch 2"):
        export(model, path, opset=20, simplify=False, options=GraphOptions(num_top=10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (64, 100)}, r"image_size is \(64, 100\), expected .* multiples of 32"),
        ({"image_size": (0, 64)}, "multiples of 32"),
        ({"opset": 16}, "opset is 16, expected 18 to 23"),
        ({"classes": ClassMap(("cat",), (1,))}, "has 3 classes, but `classes` names 1"),
        ({"batch": 0}, "batch: got 0, expected a number of images"),
        ({"options": GraphOptions(num_top=0)}, "num_top: got 0, expected a number of detections"),
        ({"options": GraphOptions(num_top=None, duplicates="drop")}, "belongs to postprocessing"),
        ({"precision": "bf16"}, "onnx comes in fp32, fp16 or int8"),
        ({"precision": "int8"}, r"int8 needs a data set.*--data"),
        ({"precision": "int8", "options": GraphOptions(frames=True)}, r"int8 measures .*leave out frames \(--frames\)"),
    ],
)
def test_impossible_requests(square: Exported, tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, ExportError), match=message):
        export(square.model, tmp_path / "m.onnx", **change)
    assert not list(tmp_path.iterdir())


def test_an_opset_of_a_format_without_one_is_refused(square: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opset: got 20, but torchscript has none; leave it out"):
        export(square.model, tmp_path / "m.torchscript", opset=20)
    assert not list(tmp_path.iterdir())


def test_tensorrt_gets_no_opset_that_it_misreads(square: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset is 20, expected at most 19 for TensorRT"):
        export(square.model, tmp_path / "m-tensorrt.onnx", opset=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_released_code_and_the_exported_file_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RT-DETRv4-S at full size: recorded weights in, recorded detections out, of two images at once.

    The export itself compares two images only; small models are compared at every batch size.
    """
    monkeypatch.setattr("rtdetrv4.export.proof.BATCHES", (2,))
    facts, arrays = golden.load("rtdetrv4_s")
    model = create_model("rtdetrv4-s")
    state = {name: torch.from_numpy(array) for name, array in golden.weights("rtdetrv4_s").items()}
    model.load_state_dict(from_released(state), strict=False)
    path = tmp_path / "s.onnx"
    report = export(model, path, model_name="rtdetrv4-s", classes=COCO, image_size=(640, 640))
    assert report.max_box_px < 0.05
    assert report.max_score < 1e-4
    assert report.num_undecided <= 1

    seeds = facts["eval"]["image_seeds"]
    found = run(path, torch.from_numpy(np.stack([golden.image(seed, 640, 640) for seed in seeds])))
    for image, (width, height) in enumerate([(640, 480), (1280, 720)]):
        actual = Listed(
            found["scores"][image, :, None],
            np.array(COCO.category_ids)[found["labels"][image]],
            found["boxes"][image] * np.array([width, height] * 2, dtype=np.float32),
        )
        expected = Listed(
            arrays["post/scores"][image, :, None], arrays["post/labels"][image], arrays["post/boxes"][image]
        )
        result = compare(expected, actual)
        assert result.num_lost == 0
        assert result.max_box_px < 0.1
