"""The HTTP interface."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import rtdetrv4
from rtdetrv4.runtime.draw import color_of_class
from rtdetrv4.serving.access import OPEN_PATHS, Access, Door, SafeHeaders
from rtdetrv4.serving.answers import answer
from rtdetrv4.serving.budget import Budget
from rtdetrv4.serving.fetching import Fetcher
from rtdetrv4.serving.metrics import Counting, Metrics
from rtdetrv4.serving.model import Found, Job, Picture, ServedModel, Wish, wish_of
from rtdetrv4.serving.page import POLICY, page_files
from rtdetrv4.serving.refusals import CLIENT_GONE, RefusedError, busy, late
from rtdetrv4.serving.schema import (
    EXPECTED,
    ModelsOut,
    Predictions,
    PredictOptions,
    State,
    predict_body,
    problems,
)
from rtdetrv4.serving.service import Service
from rtdetrv4.serving.uploads import Url, received

logger: logging.Logger = logging.getLogger(__name__)

GRACE_S = 1.0
"""How much later than its deadline a request is given up: what is late says so itself."""
PICTURES: dict[str, Picture | None] = {"json": None, "image": "jpeg", "png": "png"}
DESCRIPTION = """Objects in images. Send one image as the body, or several as a form:

    curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" "http://localhost:8000/predict?conf=0.4"
    curl -F image=@one.jpg -F image=@two.jpg http://localhost:8000/predict
"""


def create_app(service: Service, access: Access | None = None, *, fetcher: Fetcher | None = None) -> ASGIApp:
    """Make the application that uvicorn, or any other server of ASGI, runs.

    It closes the service when it is shut down.

    Args:
        service: the models.
        access: who may ask.
        fetcher: what fetches images by URL, where they are allowed; None for the usual one.
    """
    access = (access or Access()).checked()
    metrics = Metrics(service)
    fetcher = fetcher or Fetcher(service.limits.image_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        fetcher.close()
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    app = FastAPI(
        title="rtdetrv4",
        version=rtdetrv4.__version__,
        description=DESCRIPTION,
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,  # to a URL of this server, which may not be that of the balancer before it
    )
    _add_operations(app, service, access, metrics, fetcher)
    _add_page(app)
    _add_problems(app)
    _complete_documentation(app, service, access)
    inner: ASGIApp = Door(_Calm(app), access, service.limits.head_bytes)
    if access.origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    return Counting(SafeHeaders(inner, is_shared=bool(access.origins)), metrics)


def _add_operations(app: FastAPI, service: Service, access: Access, metrics: Metrics, fetcher: Fetcher) -> None:
    limits = service.limits
    held = Budget(limits.requests_held * limits.request_bytes)
    guarded = problems(401, 403, 431) if access.token is not None else problems(403, 431)

    @app.post(
        "/predict",
        summary="Detect objects",
        response_model=Predictions,
        responses={
            200: {"content": {"image/jpeg": {"schema": BINARY}, "image/png": {"schema": BINARY}}},
            **guarded,
            **problems(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
        },
        openapi_extra={"requestBody": predict_body(access.allows_urls)},
    )
    async def predict(request: Request, options: Annotated[PredictOptions, Query()]) -> Response:
        start = time.monotonic()
        _check_repetition(request)
        model = service.model(options.model)
        model.batcher.check_room()  # before its body is read
        wish = wish_of(
            model.network,
            conf=options.conf,
            classes=options.classes,
            max_det=options.max_det,
            duplicates=options.duplicates,
            slice=options.slice,
            overlap=options.overlap,
            whole=options.whole,
            picture=PICTURES[options.format],
        )
        async with received(request, limits, held) as sources:
            if wish.picture is not None and len(sources) != 1:
                raise RefusedError(
                    422,
                    "several_images",
                    "format: a picture is made of one image",
                    got=f"{len(sources)} images",
                    expected="one image, or format=json",
                )
            begun = time.monotonic()
            found = await _answered(request, _detect(model, sources, wish, begun + limits.timeout_s))
        if wish.picture is not None:
            return Response(found[0].picture, media_type=f"image/{wish.picture}")
        return JSONResponse(_predictions(model, found, time.monotonic() - start))

    async def _detect(model: ServedModel, sources: Sequence[bytes | Url], wish: Wish, deadline: float) -> list[Found]:
        fetched = 0

        async def image_of(source: bytes | Url) -> bytes:
            nonlocal fetched
            image = await _image_of(source)
            if isinstance(source, Url):
                if fetched + len(image) > limits.request_bytes:
                    raise RefusedError(
                        413,
                        "request_too_large",
                        "url: the images are too large together",
                        expected=f"at most {limits.request_bytes} bytes",
                    )
                if not held.take(len(image)):
                    raise busy("too many large images have been fetched")
                fetched += len(image)
            return image

        fetching = [asyncio.ensure_future(image_of(source)) for source in sources]
        try:
            images = await asyncio.wait_for(asyncio.gather(*fetching), max(deadline - time.monotonic(), 0))
            jobs = model.start(images, wish, deadline)
            try:
                return await _all_of(jobs, deadline)
            finally:
                for job in jobs:
                    job.abandon()
        except asyncio.TimeoutError:  # another class than the usual one before Python 3.11
            raise late() from None
        finally:
            for task in fetching:
                task.cancel()  # what has not begun is not fetched
            held.give(fetched)

    async def _image_of(source: bytes | Url) -> bytes:
        if isinstance(source, bytes):
            return source
        if not access.allows_urls:
            raise RefusedError(403, "urls_off", "url: this server fetches no images", expected="the images themselves")
        return await asyncio.wrap_future(fetcher.start(source.url))

    @app.get("/models", summary="What is served", response_model=ModelsOut, responses={**guarded, **problems(500)})
    async def models() -> JSONResponse:
        return JSONResponse(_models(service))

    @app.get("/health", summary="Whether the server is alive", response_model=State, responses=problems(431))
    async def health() -> JSONResponse:
        return JSONResponse({"status": "alive"})

    @app.get("/ready", summary="Whether requests may come", response_model=State, responses=problems(431, 503))
    async def ready() -> JSONResponse:
        if (trouble := service.trouble()) is not None:
            raise RefusedError(503, "not_ready", trouble, retry_after_s=5)
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        summary="Counters, for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **guarded, **problems(500)},
    )
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


T = TypeVar("T")
BINARY = {"type": "string", "format": "binary"}


async def _all_of(jobs: Sequence[Job], deadline: float) -> list[Found]:
    """What all jobs found; the first one that is refused is the answer."""
    waiting = asyncio.gather(*(asyncio.wrap_future(job.found) for job in jobs), return_exceptions=True)
    # `wait_for` cancels it if the client goes, and asyncio logs what nobody has looked at.
    waiting.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    try:
        results = await asyncio.wait_for(waiting, max(deadline + GRACE_S - time.monotonic(), 0))
    except asyncio.TimeoutError:
        raise late() from None
    found: list[Found] = []
    for number, result in enumerate(results, start=1):
        if isinstance(result, RefusedError):
            if len(jobs) > 1:
                result.what = f"image {number}: {result.what}"
            raise result
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found


async def _answered(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work, unless the client goes before it is there."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _predictions(model: ServedModel, found: Sequence[Found], seconds: float) -> dict[str, Any]:
    return {
        "model": model.name,
        "images": [
            {
                "width": one.width,
                "height": one.height,
                "detections": [_rounded(each) for each in one.objects],
                "times_ms": {
                    "decode": _ms(one.times.decode_s),
                    "wait": _ms(one.times.wait_s),
                    "run": _ms(one.times.run_s),
                },
            }
            for one in found
        ],
        "total_ms": _ms(seconds),
    }


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    """A detection with as many digits as mean anything."""
    xyxy = [round(value, 2) for value in found["xyxy"]]
    return found | {"confidence": round(found["confidence"], 4), "xyxy": xyxy}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _models(service: Service) -> dict[str, Any]:
    limits = service.limits
    return {
        "version": rtdetrv4.__version__,
        "models": [
            {
                "name": name,
                "architecture": model.network.architecture,
                "runtime": model.network.runtime,
                "precision": model.network.precision,
                "width": model.network.size_hw[1],
                "height": model.network.size_hw[0],
                "resize": model.network.resize,
                "max_batch": model.batcher.max_batch,
                "classes": [
                    {
                        "id": index,
                        "category_id": category_id,
                        "name": class_name,
                        "color": "#{:02x}{:02x}{:02x}".format(*color_of_class(index)),
                        "threshold": (model.network.thresholds or {}).get(class_name),
                    }
                    for index, (class_name, category_id) in enumerate(zip(*model.network.classes, strict=True))
                ],
            }
            for name, model in service.models.items()
        ],
        "limits": {
            "request_bytes": limits.request_bytes,
            "image_bytes": limits.image_bytes,
            "images": limits.images,
            "pixels": limits.pixels,
            "tiles": limits.tiles,
            "timeout_s": limits.timeout_s,
        },
    }


def _add_page(app: FastAPI) -> None:
    for path, (content, media_type) in page_files().items():
        app.add_route(path, _reading(content, media_type), methods=["GET"], include_in_schema=False)


def _reading(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def read(_: Request) -> Response:
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response(content, media_type=media_type, headers=headers)

    return read


def _check_repetition(request: Request) -> None:
    """Raise if an option has several values, of which only one would count."""
    given: defaultdict[str, list[str]] = defaultdict(list)
    for name, value in request.query_params.multi_items():
        given[name].append(value)
    for name, values in given.items():
        if len(values) > 1 and name != REPEATABLE:
            raise RefusedError(
                422,
                "invalid_option",
                f"{name}: it can be given only once",
                got=", ".join(values)[:100],
                expected=EXPECTED.get(name, "one value"),
            )


def _add_problems(app: FastAPI) -> None:
    """Everything that goes wrong is told in the same way."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return answer(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][1]) if len(first["loc"]) > 1 else "the request"
        if first["type"] == "extra_forbidden":
            return answer(
                RefusedError(
                    422, "unknown_option", "there is no such option", got=name[:100], expected=", ".join(OPTIONS)
                )
            )
        return answer(
            RefusedError(
                422,
                "invalid_option",
                f"{name[:100]}: this value is not possible",
                got=str(first.get("input"))[:100],
                expected=EXPECTED.get(name),
            )
        )

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = CODES.get(error.status_code, "refused")
        got, expected = {
            404: (request.url.path[:100], "a path that /openapi.json lists"),
            405: (request.method, (error.headers or {}).get("Allow")),
        }.get(error.status_code, (None, None))
        refusal = RefusedError(error.status_code, code, error.detail.lower(), got=got, expected=expected)
        response = answer(refusal)
        response.headers.update(error.headers or {})
        return response

    async def unforeseen(request: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        logger.error("error %s in %s %s", number, request.method, request.url.path, exc_info=error)
        return answer(RefusedError(500, "server_error", f"the server is at fault; its log says why, under {number}"))

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unforeseen)


OPTIONS = tuple(PredictOptions.model_fields)
REPEATABLE = "classes"
CODES = {404: "no_such_path", 405: "wrong_method"}


class _Calm:
    """Keeps what was answered and logged from being raised once more, which FastAPI does.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, in the terms of ASGI."""
        has_begun = False

        async def send_and_see(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception:
            if not has_begun:
                raise


def _complete_documentation(app: FastAPI, service: Service, access: Access) -> None:
    """Say in the documentation which models there are, and that requests need a token."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        for parameter in schema["paths"]["/predict"]["post"]["parameters"]:
            if parameter["name"] == "model":
                parameter["schema"] = {"type": "string", "enum": list(service.models)}
        if access.token is not None:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path in OPEN_PATHS else [{"token": []}]
        return schema

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue]
