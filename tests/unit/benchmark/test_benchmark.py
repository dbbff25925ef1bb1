"""Timing of small models: which cases there are, what is fed, and what is written; never how fast."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import openvino
import pytest

from color_model import GRAPH, METADATA
from rtdetrv4.benchmark import Benchmark, draw_benchmark, run_benchmark
from rtdetrv4.benchmark.run import _one_round, _timed  # pyright: ignore[reportPrivateUsage]
from rtdetrv4.benchmark.subject import Input, open_subject, random_feed
from rtdetrv4.cli import main
from rtdetrv4.errors import ConfigError, ExportError
from rtdetrv4.exported_detector import ExportedDetector
from rtdetrv4.runtime import ExportMetadata
from rtdetrv4.runtime.engines import EngineOptions
from rtdetrv4.runtime.engines.openvino import the_core
from rtdetrv4.runtime.export_metadata import METADATA_KEY

THEIRS = """
    <ir_version: 8, opset_import: ["" : 18]>
    graph (float[N, 3, H, W] images, int64[N, 2] orig_target_sizes) => (float[N, 3] means, int64[N, 2] sizes)
    <int64[2] space = {2, 3}>
    {
        means = ReduceMean<keepdims=0>(images, space)
        sizes = Identity(orig_target_sizes)
    }
"""


def write(path: Path, graph: str, metadata: ExportMetadata | None = None) -> Path:
    model = onnx.parser.parse_model(graph)
    if metadata is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, str(path))
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return write(tmp_path / "ours.onnx", GRAPH.format(batch="batch"), METADATA)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return write(tmp_path / "theirs.onnx", THEIRS)


def test_every_combination_is_timed(ours: Path, theirs: Path, tmp_path: Path) -> None:
    fixed = write(tmp_path / "fixed.onnx", GRAPH.format(batch="2"), METADATA)
    found = run_benchmark(
        [ours, theirs, fixed], batches=(1, 3), threads=(1, 2), image_sizes=((32, 32), (64, 32)), seconds=0.01
    )
    cases = [(Path(row.file).name, row.threads, row.image_size, row.batch) for row in found.rows]
    assert sorted(cases) == sorted(
        (name, threads, size, batch)
        for threads in (1, 2)
        for name, sizes, batches in (
            ("ours.onnx", [(32, 64)], (1, 3)),
            ("theirs.onnx", [(32, 32), (64, 32)], (1, 3)),
            ("fixed.onnx", [(32, 64)], (2,)),
        )
        for size in sizes
        for batch in batches
    )
    for row in found.rows:
        assert row.runtime.startswith("ONNX Runtime")
        assert 0 < row.least_ms <= row.median_ms <= row.p95_ms
        assert row.images_per_second > 0
        assert row.num_runs >= 7
        assert row.ap is None
        is_ours = "theirs" not in row.file
        assert (row.preprocess_ms is not None, row.postprocess_ms is not None) == (is_ours, is_ours)
        assert row.precision == ("fp32" if is_ours else None)
    assert f"{ours} at 32×32: it takes 32×64 only." in found.notes
    assert f"{fixed} at other batch sizes than 2, the only one it takes." in found.notes
    assert len(found.notes) == len(set(found.notes))


def test_openvino_runs_onnx_files_and_several_batches_at_once(ours: Path, theirs: Path) -> None:
    found = run_benchmark(
        [ours, theirs],
        runtimes=("onnxruntime", "openvino"),
        hints=("latency", "throughput"),
        precisions=("fp32",),
        threads=(1,),
        image_sizes=((32, 32),),
        seconds=0.01,
    )
    assert [(Path(row.file).name, row.runtime.split()[0], row.hint) for row in found.rows] == [
        (name, runtime, hint)
        for name in ("ours.onnx", "theirs.onnx")
        for hint, runtimes in (("latency", ("ONNX", "OpenVINO")), ("throughput", ("OpenVINO",)))
        for runtime in runtimes
    ]
    assert {row.num_parallel for row in found.rows if row.hint == "latency"} == {1}
    assert f"{ours} with the hint throughput: only OpenVINO runs several batches at once." in found.notes


def test_a_folder_of_openvino_of_another_program(theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs_openvino"
    folder.mkdir()
    openvino.save_model(the_core().read_model(str(theirs)), str(folder / "theirs.xml"), compress_to_fp16=False)
    subject = open_subject(folder, EngineOptions(precision="fp32"), image_size=(32, 96))
    feed = subject.feed(2)
    means, sizes = subject(feed)  # pyright: ignore[reportGeneralTypeIssues]
    np.testing.assert_allclose(means, feed["images"].mean(axis=(2, 3)), atol=1e-5)
    assert sizes.tolist() == [[96, 32]] * 2


def test_inputs_are_made_up_by_their_shapes() -> None:
    inputs = [
        Input("frames", (None, None, None, 3), np.dtype(np.uint8)),
        Input("scale", (None, 2), np.dtype(np.float32)),
        Input("sizes", (None, 2), np.dtype(np.int64)),
        Input("count", (None,), np.dtype(np.int32)),
        Input("flag", (), np.dtype(np.bool_)),
    ]
    feed = random_feed(inputs, 2, (32, 64))
    assert {name: (each.shape, each.dtype) for name, each in feed.items()} == {
        "frames": ((2, 32, 64, 3), np.dtype(np.uint8)),
        "scale": ((2, 2), np.dtype(np.float32)),
        "sizes": ((2, 2), np.dtype(np.int64)),
        "count": ((2,), np.dtype(np.int32)),
        "flag": ((), np.dtype(np.bool_)),
    }
    assert feed["frames"].max() > 200
    assert feed["sizes"].tolist() == [[64, 32]] * 2
    assert feed["count"].tolist() == [1, 1]


def test_rounds_alternate_and_their_first_run_does_not_count() -> None:
    calls: list[str] = []

    class Fake:
        num_parallel = 1

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, feed: object) -> dict[str, np.ndarray]:
            calls.append(self.name)
            return {}

    from rtdetrv4.benchmark.run import _Case  # pyright: ignore[reportPrivateUsage]

    cases = [_Case(Path(name), Fake(name), EngineOptions(), False, 4, 1, None) for name in "ab"]  # pyright: ignore[reportArgumentType]
    times = _timed(cases, seconds=1e-9)
    # Three runs each to warm up, then a b, b a, a b, …: of two runs in each round one counts.
    assert "".join(calls) == "aaabbb" + "aabb" + "bbaa" + "aabb" + "bbaa" + "aabb" + "bbaa" + "aabb"
    assert [len(found) for found, _ in times] == [7, 7]
    assert [len(rates) for _, rates in times] == [7, 7]
    found, elapsed = _one_round(cases[0], None, 1e-9)  # pyright: ignore[reportArgumentType]
    assert len(found) == 1
    assert elapsed * 1000 >= found[0]


def test_ap_comes_from_the_report_of_the_export(ours: Path, tmp_path: Path) -> None:
    report = ours.with_name("ours.onnx.report.json")
    report.write_text(json.dumps({"precision": "bf16", "accuracy": {"ap": 0.5}}))
    assert run_benchmark([ours], seconds=0.01).rows[0].ap is None  # it was measured on another computation
    report.write_text(json.dumps({"precision": "fp32", "accuracy": {"ap": 0.5}}))
    found = run_benchmark([ours], seconds=0.01)
    assert found.rows[0].ap == 0.5
    assert draw_benchmark(found, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    for content in ("{", '{"accuracy": null}', "[]"):
        report.write_text(content)
        found = run_benchmark([ours], seconds=0.01)
        assert found.rows[0].ap is None
    assert not draw_benchmark(found, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_ap_is_measured_in_the_runtime_of_the_file(
    ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ours_openvino"
    folder.mkdir()
    openvino.save_model(the_core().read_model(str(ours)), str(folder / "ours.xml"), compress_to_fp16=False)
    (folder / "metadata.json").write_text(METADATA.to_json())
    asked: list[tuple[str, str, str]] = []

    def val(detector: ExportedDetector, data: str, *, split: str) -> SimpleNamespace:
        asked.append((detector.engine.name.split()[0], data, split))
        return SimpleNamespace(ap=0.25)

    monkeypatch.setattr(ExportedDetector, "val", val)
    found = run_benchmark(
        [ours, folder, theirs],
        batches=(1, 2),
        runtimes=("onnxruntime", "openvino"),
        image_sizes=((32, 32),),
        precisions=("fp32",),
        seconds=0.01,
        data="mine",
        split="test",
    )
    assert asked == [("ONNX", "mine", "test"), ("OpenVINO", "mine", "test")]
    known = {(Path(row.file).name, row.runtime.split()[0]): row.ap for row in found.rows}
    assert known == {
        ("ours.onnx", "ONNX"): 0.25,
        ("ours.onnx", "OpenVINO"): None,
        ("ours_openvino", "OpenVINO"): 0.25,
        ("theirs.onnx", "ONNX"): None,
        ("theirs.onnx", "OpenVINO"): None,
    }
    assert found.data == "mine, test"


def test_the_command_prints_a_table_or_json_and_writes_both(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", str(ours), "--seconds", "0.01", "--batch", "1,2", "--out", "b"]) == 0
    out = capsys.readouterr().out
    assert "images/s" in out
    assert out.endswith("Results: b, without a picture, because no AP is known\n")
    written = json.loads(Path("b/bench.json").read_text(encoding="utf-8"))
    assert [row["batch"] for row in written["rows"]] == [1, 2]
    assert set(written) == set(Benchmark._fields)
    assert main(["bench", str(ours), "--seconds", "0.01", "--json", "--out", "b"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("b-2/bench.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("bench w.safetensors", "w.safetensors is no exported file; export the model first: rtdetrv4 export"),
        ("bench missing.onnx", "missing.onnx does not exist"),
        ("bench w.onnx --batch 0", '--batch: got "0", expected a number, 1 or more'),
        ("bench w.onnx --threads two", '--threads: got "two", expected a number'),
        ("bench w.onnx --hint fast", '--hint: got "fast", expected latency or throughput'),
        ("bench w.onnx --runtime tvm", '--runtime: got "tvm", expected onnxruntime or openvino'),
        ("bench w.onnx --precision fp16", '--precision: got "fp16", expected fp32 or bf16'),
        ("bench w.onnx --imgsz 100", '--imgsz: got "100", expected multiples of 32'),
        ("bench w.onnx --seconds 0", "seconds: got 0.0, expected a time"),
    ],
)
def test_a_mistake_is_one_line(args: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line


def test_models_without_images_and_with_nothing_left(tmp_path: Path, ours: Path) -> None:
    graph = THEIRS.replace("float[N, 3, H, W] images, ", "").replace("(float[N, 3] means, ", "(")
    graph = graph.replace("means = ReduceMean<keepdims=0>(images, space)", "")
    with pytest.raises(ExportError, match=r"takes no images: expected an input of four dimensions"):
        run_benchmark([write(tmp_path / "none.onnx", graph)])
    with pytest.raises(ConfigError, match=r"nothing to time: .*only OpenVINO runs several batches at once"):
        run_benchmark([ours], hints=("throughput",))
