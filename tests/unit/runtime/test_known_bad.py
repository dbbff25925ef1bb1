"""Runtimes that compute detection transformers wrongly are refused, whatever is installed here."""

from __future__ import annotations

import logging

import pytest

from rtdetrv4.errors import ExportError
from rtdetrv4.runtime.known_bad import KNOWN_BAD, check_runtime, parse_version


@pytest.mark.parametrize(
    ("runtime", "version", "more", "message"),
    [
        ("openvino", "2025.3.0-19807-44526285f24", {"device": "cpu"}, r"openvino 2025\.3\.0.* on CPUs .*>=2026\.1"),
        ("openvino", "2025.4.1", {"device": "CPU"}, "finds less"),
        ("openvino", "2026.0.0", {"device": "cpu"}, "geti issue 5882"),
        ("tensorrt", "8.5.0.12", {"precision": "fp16"}, r"install TensorRT 10\.6"),
        ("tensorrt", "10.5.1", {"precision": "fp16"}, "loses detections in float16"),
        ("tensorrt", "10.13.3", {}, "grid_sample=False"),
        ("onnx2tf", "1.28.2", {}, "grid_sample=False"),
    ],
)
def test_wrong_versions_are_refused(runtime: str, version: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_runtime(runtime, version, **more)


@pytest.mark.parametrize(
    ("runtime", "version", "more"),
    [
        ("openvino", "2025.2.0", {"device": "cpu"}),
        ("openvino", "2026.1.0-1-abc", {"device": "cpu"}),
        ("openvino", "2026.10.0", {"device": "cpu"}),
        ("openvino", "2025.3.0", {"device": "npu"}),
        ("tensorrt", "8.4.3", {"precision": "fp16"}),
        ("tensorrt", "10.6.0", {"precision": "fp16"}),
        ("tensorrt", "10.4.0", {"precision": "fp32"}),
        ("tensorrt", "10.12.0", {}),
        ("onnxruntime", "1.17.0", {}),
    ],
)
def test_others_are_not(runtime: str, version: str, more: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    check_runtime(runtime, version, **more)
    assert not caplog.records


def test_a_graph_without_the_operator_is_right() -> None:
    check_runtime("tensorrt", "10.13.3", operators=frozenset())


@pytest.mark.parametrize(
    ("runtime", "version", "device", "remedy"),
    [
        ("openvino", "2026.4.1", "GPU.1", "verify the file on it"),
        ("directml", "1.20", None, "verify the file on it"),
        ("tensorrt", "10.14.1", None, "compare on your own images"),
        ("tensorrt", "11.1", None, "compare on your own images"),
    ],
)
def test_what_may_be_wrong_is_warned_of(
    runtime: str, version: str, device: str | None, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_runtime(runtime, version, device=device)
    assert remedy in caplog.text


def test_every_entry_says_what_to_do_and_where_it_is_from() -> None:
    for each in KNOWN_BAD:
        assert min(map(len, (each.problem, each.remedy, each.source))) > 5
        assert each.first <= each.last


def test_versions() -> None:
    assert parse_version("2026.1.0-20001-abc") == (2026, 1, 0)
    assert parse_version("10.13") < parse_version("10.13.0")
    with pytest.raises(ValueError, match="not a version: main"):
        parse_version("main")
