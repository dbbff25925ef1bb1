"""ExportedDetector on small graphs whose answer is known: the scores are the mean red, green and blue of the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from rtdetrv4.errors import ConfigError, ExportError, SourceError
from rtdetrv4.models.postprocess import postprocess as torch_postprocess
from rtdetrv4.runtime import ExportedDetector, ExportMetadata
from rtdetrv4.runtime.detect import _warn_once
from rtdetrv4.runtime.export_metadata import METADATA_KEY
from rtdetrv4.runtime.postprocess import postprocess
from rtdetrv4.runtime.preprocess import view_of

METADATA = ExportMetadata(
    model="test",
    names=("red", "green", "blue"),
    category_ids=(7, 8, 30056),
    image_size=(32, 64),
    outputs="postprocessed",
    version="0.1.0",
)
POSTPROCESSED = """
    <ir_version: 8, opset_import: ["" : 18]>
    graph ({dtype}[{batch}, 3, 32, 64] images)
        => ({dtype}[batch, 3] scores, int64[batch, 3] labels, {dtype}[batch, 3, 4] boxes)
    <int64[2] space = {{2, 3}}, int64[1,3] classes = {{0, 1, 2}}, float[4] box = {{0.25, 0.5, 0.75, 1.25}},
     int64[1] last = {{2}}>
    {{
        scores = ReduceMean<keepdims=0>(images, space)
        zeros = Sub(scores, scores)
        zeros_int = Cast<to=7>(zeros)
        labels = Add(zeros_int, classes)
        column = Unsqueeze(zeros, last)
        typed_box = CastLike(box, column)
        boxes = Add(column, typed_box)
    }}
"""
RAW = """
    <ir_version: 8, opset_import: ["" : 18]>
    graph (float[batch, 3, 32, 64] images) => (float[batch, 1, 3] logits, float[batch, 1, 4] boxes)
    <int64[2] space = {2, 3}, float[4] box = {0.5, 0.5, 0.5, 1.0}, float half = {0.5}, int64[1] query = {1},
     int64[1] first = {0}, int64[1] one = {1}, int64[1] last = {2}>
    {
        mean = ReduceMean<keepdims=0>(images, space)
        centered = Sub(mean, half)
        logits = Unsqueeze(centered, query)
        zeros = Sub(logits, logits)
        column = Slice(zeros, first, one, last)
        boxes = Add(column, box)
    }
"""


def write_model(
    folder: Path, graph: str | None = None, metadata: str | None = "", *, dtype: str = "float", batch: str = "batch"
) -> Path:
    model = onnx.parser.parse_model(graph or POSTPROCESSED.format(dtype=dtype, batch=batch))
    if metadata is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata or METADATA.to_json()})
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def plain_image(red: int, green: int, blue: int, height: int = 50, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), (red, green, blue), np.uint8)


def test_predict_finds_what_the_graph_says(tmp_path: Path) -> None:
    session = ExportedDetector(write_model(tmp_path))
    assert session.metadata == METADATA
    images = [plain_image(255, 0, 102), plain_image(0, 128, 0, 100, 100)]
    first, second = session.predict(images, conf=0.3, duplicates="keep")
    assert first.class_name == ["red", "blue"]
    assert first.category_id.tolist() == [7, 30056]
    assert first.confidence == pytest.approx([1, 0.4], abs=1e-5)
    np.testing.assert_allclose(first.xyxy, [[50, 25, 150, 50]] * 2)  # cut off at the lower border
    assert first.image is images[0]
    assert second.class_name == ["green"]
    np.testing.assert_allclose(second.xyxy, [[25, 50, 75, 100]])
    assert [found.class_name for found in session.predict(images, conf=0.3)] == [["red"], ["green"]]
    for options in ({"classes": ["blue", 1]}, {"conf": {"blue": 0.3, "green": 0.3}}):
        chosen = session.predict(images, duplicates="keep", **{"conf": 0.3} | options)
        assert [found.class_name for found in chosen] == [["blue"], ["green"]]
    assert len(session.predict(images, conf=0.3, duplicates="keep", max_det=1)[0]) == 1


def test_options_are_checked_at_once(tmp_path: Path) -> None:
    session = ExportedDetector(write_model(tmp_path))
    for options, message in (
        ({"conf": {"rad": 0.5}}, 'there is no class "rad"; the classes are red, green, blue. Did you mean "red"'),
        ({"conf": 25}, "conf: got 25, expected a number from 0 to 1"),
        ({"classes": ["grean"]}, 'classes: there is no class "grean".*Did you mean "green"'),
        ({"batch": 0}, "batch: got 0, expected a number of images"),
        ({"batch": 2.0}, "batch: got 2.0"),
        ({"max_det": 0}, "max_det: got 0"),
        ({"duplicates": "dropped"}, 'duplicates: got "dropped", expected drop or keep'),
    ):
        with pytest.raises(ConfigError, match=message):
            session.predict(plain_image(255, 0, 0), stream=True, **options)
    with pytest.raises(SourceError, match="does not exist"):
        session.predict("missing.jpg", stream=True)


def test_a_device_is_a_name_a_number_or_one_of_torch(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    for device in ("auto", None, "cpu", torch.device("cpu")):
        ExportedDetector(path, device=device)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match='device: got "7"'):
        ExportedDetector(path, device=7)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("outputs", ["postprocessed", "raw"])
def test_a_letterbox_is_undone(outputs: str, tmp_path: Path) -> None:
    """The image is 100 wide and 200 high, the input 64 and 32: scaled by 0.16 to 16 × 32, from column 24 on."""
    metadata = METADATA._replace(resize="letterbox", outputs=outputs)
    graph = RAW if outputs == "raw" else POSTPROCESSED.format(dtype="float", batch="batch")
    session = ExportedDetector(write_model(tmp_path, graph, metadata.to_json()))
    (found,) = session.predict(plain_image(255, 0, 0, 200, 100), conf=0)
    # 255 in a quarter of the input.
    red = 0.25 if outputs == "postprocessed" else 1 / (1 + np.exp(0.25))
    assert found.confidence[0] == pytest.approx(red, abs=1e-5)
    # The box goes from column 16 to 48 of the input, so from -8 to 24 of the 16 that show the image.
    bottom, top = (200, 100) if outputs == "postprocessed" else (200, 0)
    np.testing.assert_allclose(found.xyxy[0], [0, top, 100, bottom], atol=1e-4)
    box = session.run([plain_image(255, 0, 0, 200, 100)])[2][0, :1]
    view = view_of((200, 100), (32, 64), "letterbox")
    np.testing.assert_allclose(view.boxes_px(box)[0, [0, 2]], [-50, 150], atol=1e-4)


def test_best_thresholds_come_with_the_file(tmp_path: Path) -> None:
    images = [plain_image(255, 0, 102), plain_image(0, 128, 0)]
    best = METADATA._replace(thresholds={"red": 0.9, "green": 0.6, "blue": 0.4})
    session = ExportedDetector(write_model(tmp_path, metadata=best.to_json()))
    assert session.metadata == best
    found = session.predict(images, conf="best", duplicates="keep")
    assert [each.class_name for each in found] == [["red", "blue"], []]
    assert "thresholds" not in METADATA.to_json(), "earlier versions refuse what they do not know"
    with pytest.raises(ConfigError, match='conf: got "best", but this model remembers no thresholds'):
        ExportedDetector(write_model(tmp_path)).predict(images, conf="best")


@pytest.mark.parametrize("batch", ["batch", "4"])
def test_tiles_are_joined(batch: str, tmp_path: Path) -> None:
    """Every tile has a box from (1/4, 1/2) to (3/4, 1): 32 × 64 tiles of a red image of 32 × 112 pixels, and itself.

    The tiles begin at 0 and 48. Their boxes are 32 wide, that of the whole is 56 wide and overlaps each by 16 / 72.
    """
    session = ExportedDetector(write_model(tmp_path, batch=batch))
    image = plain_image(255, 0, 0, 32, 112)
    (found,) = session.predict(image, slice=(32, 64), overlap=0.25, batch=2, conf=0.5)
    np.testing.assert_allclose(found.xyxy, [[16, 16, 48, 32], [64, 16, 96, 32], [28, 16, 84, 32]])
    (parts,) = session.predict(image, slice="32x64", overlap=0.25, whole=False, conf=0.5)
    np.testing.assert_allclose(parts.xyxy, found.xyxy[:2])
    (plain,), (uncut,) = session.predict(image, conf=0.5), session.predict(image, conf=0.5, slice=112)
    np.testing.assert_array_equal(plain.xyxy, uncut.xyxy)
    np.testing.assert_allclose(plain.xyxy, [[28, 16, 84, 32]])


def test_tiles_that_enlarge_beyond_training_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    images = [plain_image(255, 0, 0, 32, 112)]
    ExportedDetector(write_model(tmp_path)).predict(images, slice=(32, 64))
    assert "show objects" not in caplog.text, "it is not known at which scale"
    known = METADATA._replace(training_hw=(64.0, 128.0))
    assert ExportMetadata.from_json(known.to_json()) == known
    ExportedDetector(write_model(tmp_path, metadata=known.to_json())).predict(images, slice=(32, 64))
    assert "tiles of 32x64 pixels show objects 2.0 times as large as training did" in caplog.text


def test_nan_scores_find_nothing_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = RAW.replace("centered = Sub(mean, half)", "none = Sub(half, half)\n        centered = Div(none, none)")
    graph = graph.replace(
        "logits = Unsqueeze(centered, query)", "wide = Add(mean, centered)\n logits = Unsqueeze(wide, query)"
    )
    session = ExportedDetector(write_model(tmp_path, graph, METADATA._replace(outputs="raw").to_json()))
    found = session.predict([plain_image(255, 0, 0)] * 3, conf=0)
    assert [len(each) for each in found] == [0, 0, 0]
    assert caplog.text.count("returns NaN instead of scores") == 1
    found[0].save(tmp_path / "a.jpg")
    assert json.loads(found[0].to_json())["detections"] == []


@pytest.mark.parametrize(("batch", "dtype"), [("batch", "float"), ("4", "float"), ("1", "float"), ("batch", "float16")])
def test_any_number_of_images_runs_with_any_batch_size(batch: str, dtype: str, tmp_path: Path) -> None:
    session = ExportedDetector(write_model(tmp_path, batch=batch, dtype=dtype))
    images = [plain_image(25 * i, 0, 0) for i in range(7)]
    for asked in (1, 3, 16):
        found = session.predict(images, conf={"red": 0.0}, batch=asked)
        assert [d.confidence[0] for d in found] == pytest.approx([25 * i / 255 for i in range(7)], abs=1e-3)


def test_stream_reads_no_further_than_it_must(tmp_path: Path) -> None:
    session = ExportedDetector(write_model(tmp_path))
    images = iter([plain_image(255, 0, 0)] * 5)
    assert next(session.predict(images, batch=2, stream=True)).class_name == ["red"]
    assert len(list(images)) == 3


def test_raw_outputs_are_postprocessed_here(tmp_path: Path) -> None:
    session = ExportedDetector(write_model(tmp_path, RAW, METADATA._replace(outputs="raw").to_json()))
    (found,) = session.predict(plain_image(0, 255, 128), conf=0.4, duplicates="keep")
    assert found.class_name == ["green", "blue"]
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-np.array([0.5, 128 / 255 - 0.5]))), abs=1e-6)
    np.testing.assert_allclose(found.xyxy, [[50, 0, 150, 50]] * 2)


def test_numpy_postprocess_equals_torch() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((2, 50, 11)) * 4).astype(np.float32)
    boxes = rng.random((2, 50, 4), dtype=np.float32)
    for num_top in (300, 10_000):
        ours = postprocess(logits, boxes, num_top)
        theirs = torch_postprocess(torch.from_numpy(logits), torch.from_numpy(boxes), torch.ones(2, 2), num_top)
        for mine, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, their.numpy(), rtol=1e-5, atol=1e-7)


def test_postprocess_of_extreme_logits() -> None:
    scores, labels, _ = postprocess(np.array([[[-500.0, 500.0, -100.0]]], np.float32), np.zeros((1, 1, 4), np.float32))
    assert labels.tolist() == [[1, 2, 0]]
    assert scores.tolist() == [[1, pytest.approx(np.exp(-100)), 0]]


def test_metadata_survives_the_round_trip() -> None:
    metadata = METADATA._replace(names=("细胞", 'a "quoted" name', "x"))
    assert ExportMetadata.from_json(metadata.to_json()) == metadata
    assert "left_out" not in metadata.to_json(), "earlier versions read files of all classes"
    subset = metadata._replace(left_out=("y", "z"))
    assert ExportMetadata.from_json(subset.to_json()) == subset


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "has no metadata of rtdetrv4"),
        ("{", "the metadata of the exported model cannot be read"),
        ('{"names": ["a"]}', r"model.onnx: .* cannot be read: model, category_ids, .*, version are missing; export it"),
        ("[1]", "cannot be read: they are no mapping; export it again"),
        (METADATA._asdict() | {"unknown": 1}, "cannot be read: this version knows no unknown; export it again"),
        (METADATA._asdict() | {"names": "ab"}, "cannot be read: names is no list of class names"),
        (METADATA._asdict() | {"names": ["a"]}, "category_ids is no list of 1 whole numbers, one for each of names"),
        (METADATA._asdict() | {"image_size": [32]}, "image_size is no height and width in pixels"),
        (METADATA._asdict() | {"left_out": "b"}, "left_out is no list of class names"),
        (METADATA._asdict() | {"resize": "crop"}, 'has resize "crop", expected letterbox or stretch.*rtdetrv4 0.1.0'),
    ],
)
def test_metadata_that_cannot_be_used(metadata: str | dict | None, message: str, tmp_path: Path) -> None:
    metadata = json.dumps(metadata) if isinstance(metadata, dict) else metadata
    with pytest.raises(ExportError, match=message):
        ExportedDetector(write_model(tmp_path, metadata=metadata))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not exist"):
        ExportedDetector(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"onnxruntime cannot load .*broken.onnx"):
        ExportedDetector(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("outputs", "names", "message"),
    [
        ("postprocessed", ("red",), "name 1 class, counted from 0, but the file returned label 1; export"),
        ("raw", ("red", "green"), "name 2 classes, but the file returned scores of 3; export it again"),
        (
            "other",
            ("red", "green", "blue"),
            "announce scores, labels, boxes, but the file returned logits, boxes, without scores, labels; export",
        ),
    ],
)
def test_metadata_of_another_model(outputs: str, names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    metadata = METADATA._replace(
        names=names, category_ids=tuple(range(len(names))), outputs="raw" if outputs == "raw" else "postprocessed"
    )
    graph = POSTPROCESSED.format(dtype="float", batch="batch") if outputs == "postprocessed" else RAW
    session = ExportedDetector(write_model(tmp_path, graph, metadata.to_json()))
    with pytest.raises(ExportError, match=rf"model\.onnx: its metadata {message}"):
        session.predict(plain_image(255, 0, 102))


@pytest.mark.parametrize(
    ("outputs", "name", "wrong", "message"),
    [
        ("postprocessed", "boxes", np.zeros((1, 2, 0), np.float32), "boxes of shape 1×2×0, float32"),
        ("postprocessed", "boxes", np.zeros((1, 3, 4), np.float32), "boxes of shape 1×3×4, float32"),
        ("postprocessed", "labels", np.zeros((1, 2), np.float32), "labels of shape 1×2, float32"),
        ("postprocessed", "labels", np.zeros((2, 2), np.int64), "labels of shape 2×2, int64"),
        ("postprocessed", "scores", np.zeros((), np.float32), "scores of shape none, float32"),
        ("raw", "logits", np.zeros((1, 2), np.float32), "logits of shape 1×2, float32"),
        ("raw", "boxes", np.zeros((1, 2, 4), np.int64), "boxes of shape 1×2×4, int64"),
    ],
)
def test_outputs_of_another_shape_or_kind(
    outputs: Literal["raw", "postprocessed"],
    name: str,
    wrong: np.ndarray,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = ExportedDetector(write_model(tmp_path))
    session.metadata = session.metadata._replace(outputs=outputs)
    boxes = np.zeros((1, 2, 4), np.float32)
    right = {"scores": boxes[..., 0], "labels": np.zeros((1, 2), np.int64), "boxes": boxes}
    if outputs == "raw":
        right = {"logits": boxes[..., :3], "boxes": boxes}
    monkeypatch.setattr(session, "engine", lambda images: right)
    session.predict(plain_image(0, 0, 0))
    monkeypatch.setattr(session, "engine", lambda images: {**right, name: wrong})
    with pytest.raises(ExportError, match=rf"for 1 image the file returned {message}, which no detector returns"):
        session.predict(plain_image(0, 0, 0))


def test_a_call_predicts_and_the_text_says_what_it_is(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    session = ExportedDetector(path)
    (found,) = session(plain_image(255, 0, 102), conf=0.3)
    assert found.class_name == ["red"]
    assert repr(session) == f'ExportedDetector("{path}", {session.engine.name}, 32x64, 3 classes)'
