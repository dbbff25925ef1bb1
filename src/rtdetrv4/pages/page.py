"""Pages from templates: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtdetrv4.errors import require
from rtdetrv4.outputs import write_text

MAX_BYTES = 5_000_000
"""The largest page: it can be mailed, and a browser opens it at once."""


def render(template: str, **context: Any) -> str:
    """Fill in a template, escaping every value: names of classes and files may be markup.

    Args:
        template: its path in this package, "report/report.html.jinja"; it extends "pages/base.html.jinja".
        context: what the template names. Charts of `rtdetrv4.pages.svg` go through the macro `chart` of
            "pages/parts.html.jinja", which takes them as they are.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "eval")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rtdetrv4", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def write_page(path: Path, html: str) -> None:
    """Write a page whole; what is not UTF-8 in the name of a file is shown as an escape."""
    write_text(path, html, errors="backslashreplace")
