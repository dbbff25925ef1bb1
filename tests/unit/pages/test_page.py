from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from rtdetrv4.pages.page import render, write_page

PAGE = """{% extends "pages/base.html.jinja" %}
{% import "pages/parts.html.jinja" as parts %}
{% block title %}{{ name }}{% endblock %}
{% block content %}{{ parts.tile(name, "AP") }}{{ parts.chart("<svg></svg>", name) }}
{{ parts.table(["class", "AP"], [[name, "1"]]) }}{{ parts.picture("", name) }}{% endblock %}"""


@pytest.fixture(autouse=True)
def _template(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = jinja2.PackageLoader
    monkeypatch.setattr(
        jinja2, "PackageLoader", lambda *given: jinja2.ChoiceLoader([jinja2.DictLoader({"page": PAGE}), loader(*given)])
    )


def test_values_are_escaped_and_charts_are_not() -> None:
    html = render("page", name="<b>")
    assert "<b>" not in html.replace('<div class="tile"><b>', "")
    assert html.count("&lt;b&gt;") == 5
    assert "<svg></svg>" in html


def test_a_page_needs_no_other_file_and_no_script() -> None:
    html = render("page", name="name")
    assert "prefers-color-scheme: dark" in html
    assert not any(text in html for text in ("<script", "<link", "http://", "https://", "url("))


def test_a_name_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("page")


def test_a_name_that_is_not_utf8_is_written_as_an_escape(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "caf\udce9")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == r"caf\udce9"
