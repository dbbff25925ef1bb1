from __future__ import annotations

from typing import Any

import pytest
import yaml

from rtdetrv4.yaml12 import dump_yaml, load_yaml

TEXTS = ["yes", "no", "on", "off", "y", "n", "Yes", "NO", "012", "1:30", "0x1f", "1_000", "2024-05-01", "=", "<<"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(text: str) -> None:
    assert load_yaml(f"[{text}]") == [text]


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-0.5", -0.5), ("1e-4", 1e-4), ("true", True), ("False", False), ("null", None), ("~", None)],
)
def test_scalars(text: str, value: Any) -> None:
    (loaded,) = load_yaml(f"[{text}]")
    assert loaded == value
    assert type(loaded) is type(value)


def test_either_version_reads_what_is_written() -> None:
    content = {"names": [*TEXTS, "true", "null", "7", "1e-4"], "number": 7, "rate": 1e-4, "flag": True, "none": None}
    assert load_yaml(dump_yaml(content)) == content
    assert yaml.safe_load(dump_yaml({"names": content["names"]})) == {"names": content["names"]}
