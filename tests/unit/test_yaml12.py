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


def doublings(mapping: bool) -> str:
    """A kilobyte that stands for 2^60 values."""
    lines = ["a0: &a0 [x]"]
    for number in range(1, 60):
        pair = (f"*a{number - 1}",) * 2
        lines.append(f"a{number}: &a{number} " + ("{{x: {}, y: {}}}" if mapping else "[{}, {}]").format(*pair))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (doublings(mapping=False), "more than 200000 values"),
        (doublings(mapping=True), "more than 200000 values"),
        ("a: &a [*a]", "an alias to what it is a part of"),
        ("&a {b: {c: *a}}", "an alias to what it is a part of"),
        ("[" * 100_000, "more than 50 lists"),
        ("".join(f"{' ' * level}a:\n" for level in range(100)), "more than 50 lists"),
        ("a: 1\nb: 2\na: 3", "the key 'a' twice"),
        ("{a: {b: 1, b: 2}}", "the key 'b' twice"),
        ('!!python/object/apply:os.system ["id"]', "could not determine a constructor"),
        ("!<tag:yaml.org,2002:python/name:os.system> x", "could not determine a constructor"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!float x", "could not convert"),
        ("!!bool x", "cannot be read"),
        ("!!int ''", "cannot be read"),
        ("9" * 5000, "cannot be read"),
        ("x" * 1_000_001, "at most 1000000"),
    ],
)
def test_what_no_description_needs_is_refused(text: str, reason: str) -> None:
    with pytest.raises(yaml.YAMLError, match=reason):
        load_yaml(text)


def test_aliases_and_depth_within_reason() -> None:
    assert load_yaml("a: &a [1, 2]\nb: *a\nc: [*a, *a]") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}
    assert load_yaml("[" * 49 + "]" * 49) is not None
    shared = ["cat", "dog"]
    assert load_yaml(dump_yaml({"train": shared, "val": shared})) == {"train": shared, "val": shared}
