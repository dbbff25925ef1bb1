"""Answers in JSON."""

from __future__ import annotations

from starlette.responses import JSONResponse

from rtdetrv4.serving.refusals import RefusedError


def answer(error: RefusedError) -> JSONResponse:
    """What a client gets in place of detections."""
    return JSONResponse(error.content, error.status, headers=error.headers)
