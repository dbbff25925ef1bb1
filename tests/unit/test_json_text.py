from __future__ import annotations

import pytest

from rtdetrv4.json_text import load_json


def test_json_in_any_of_its_encodings() -> None:
    content = {"name": "Kätzchen", "numbers": [1, 2.5, None, True]}
    text = '{"name": "Kätzchen", "numbers": [1, 2.5, null, true]}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert load_json(text.encode(encoding)) == content
    assert load_json(text) == content


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 1_000_000, "too many lists and objects inside each other"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "too many lists and objects inside each other"),
        ("9" * 5000, "4300 digits"),
        ('{"images": [1], "images": []}', 'the key "images" twice'),
        ('[{"a": {"b": 1, "b": 1}}]', 'the key "b" twice'),
        ('{"a": 1', "delimiter"),
        (b"\xff\xff", "decode"),
    ],
)
def test_errors_are_value_errors(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_json(text)
