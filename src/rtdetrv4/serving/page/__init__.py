"""The page that tries a model: static files without a build step, which load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
START = "index.html"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the page may load: its own files, and the pictures and videos that its user gives it."""


def page_files() -> dict[str, tuple[bytes, str]]:
    """The files of the page, with their media types, by path: read once, so that no path leads anywhere else."""
    files = {f"/page/{file.name}": (file.read_bytes(), TYPES[file.suffix]) for file in _files()}
    return {"/": files[f"/page/{START}"], **files}


def _files() -> list[Path]:
    return sorted(file for file in FOLDER.iterdir() if file.suffix in TYPES)
