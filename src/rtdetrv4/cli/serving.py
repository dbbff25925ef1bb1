"""`serve`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rtdetrv4.cli.options import RuntimeDevice, RuntimePrecision, Trust
from rtdetrv4.cli.running import detector_of, interruptible
from rtdetrv4.errors import ConfigError, require

if TYPE_CHECKING:
    from rtdetrv4 import Detector
    from rtdetrv4.serving import Network
    from rtdetrv4.serving.model import ServedModel

MODULES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
ENDINGS = ("_openvino", "_triton")
"""Of folders, which are no suffixes."""
EVERY_RUN = ("best", "last", "model", "weights")
"""Names of files that say nothing, and their folder something."""
MAX_BATCH = 8
MIB = 2**20
MOST = 1e15
"""Bytes or pixels that a limit may be below."""


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]MODEL…", help="Exported files; or weights and models by name, with torch."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's own need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="RTDETRV4_TOKEN", help="What requests must bear. Others can see it in a command line."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Images per run of the network. Default: as many as pay here, up to 8.", min=1)
    ] = None,
    max_wait_ms: Annotated[
        float, typer.Option(help="How long an image waits for others that are on their way.", min=0)
    ] = 5.0,
    hint: Annotated[
        Literal["latency", "throughput"],
        typer.Option(help="One run of the network at a time on all cores, or several at once, for many clients."),
    ] = "latency",
    queue: Annotated[int, typer.Option(help="Images on their way at once; more are answered 429.", min=1)] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds in which a request is answered, or refused.")] = 30.0,
    max_images: Annotated[int, typer.Option(help="Images per request.", min=1)] = 16,
    max_image_mib: Annotated[float, typer.Option(help="Size of an image file, in MiB.")] = 20.0,
    max_request_mib: Annotated[float, typer.Option(help="Size of a request, in MiB.")] = 64.0,
    max_megapixels: Annotated[float, typer.Option(help="Pixels of an image, in millions.")] = 64.0,
    max_connections: Annotated[int, typer.Option(help="Open connections.", min=1)] = 500,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A page of another server that may ask: https://example.com; repeatable.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Without a token: another name that this server has; repeatable.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images from public addresses for clients.")
    ] = False,
    certificate: Annotated[Path | None, typer.Option(help="For https: a file with the chain, as PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="For https: the file of its key.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that work on one batch.", min=1)] = None,
    device: RuntimeDevice = None,
    precision: RuntimePrecision = None,
    trust: Trust = False,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request.")] = False,
) -> None:
    """Answer requests over HTTP with what is found in their images; a page at / tries it.

    An exported file, such as weights.onnx, needs no torch.
    """
    for module in MODULES:
        require(module, "serve")

    from rtdetrv4.serving import BatchSettings, Limits, Service
    from rtdetrv4.serving.access import Access, host_names, is_loopback
    from rtdetrv4.serving.server import Place, Server, open_socket

    named = named_models(models)
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets others in, so there must be a token, in RTDETRV4_TOKEN; make one with: python -c "
            '"import secrets; print(secrets.token_urlsafe(32))"'
        )
    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key belong together.")
    access = Access(
        token=token,
        hosts=None if token is not None else host_names(host, allow_host or ()),
        origins=tuple(allow_origin or ()),
        allows_urls=allow_urls,
    ).checked()
    limits = Limits(
        request_bytes=_whole("max-request-mib", max_request_mib, MIB),
        image_bytes=_whole("max-image-mib", max_image_mib, MIB),
        images=max_images,
        pixels=_whole("max-megapixels", max_megapixels, 1e6),
        timeout_s=timeout,
        connections=max_connections,
    ).checked()
    place = Place(host, port, certificate, key)
    with open_socket(place) as listening, suppress(KeyboardInterrupt), interruptible(lambda: ""):
        settings = BatchSettings(max_batch or MAX_BATCH, max_wait_ms / 1000, queue)
        networks = {}
        for name, model in named.items():
            network = _load(
                model,
                settings.max_batch,
                threads=threads,
                device=device,
                precision=precision,
                hint=hint,
                trust=trust,
            )
            prepare = network.tuned if max_batch is None else network.warmed_up
            networks[name] = prepare(settings.max_batch)
        service = Service(networks, settings, limits)
        try:
            for name, model in service.models.items():
                print(f"{name}: {_facts(model)}")

            def announce() -> None:
                shown = f"[{host}]" if ":" in host else host
                scheme = "http" if certificate is None else "https"
                print(f"Serving at {scheme}://{shown}:{listening.getsockname()[1]}; Ctrl-C stops.", flush=True)

            server = Server(service, access, place, announce=announce, logs_requests=access_log)
            server.run([listening])
        finally:
            service.close()
    print("Stopped.")


def named_models(models: list[str]) -> dict[str, str]:
    """Models by the name that requests call them.

    Raises:
        ConfigError: two have the same name.
    """
    named: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not (equals and NAME.fullmatch(name)):
            name, model = _name_of(text), text
        if not model:
            raise ConfigError(f'"{text}" names no model; expected NAME=MODEL.')
        if name in named:
            raise ConfigError(
                f'Two models have the name "{name}": {named[name]} and {model}. Give names, such as first={model}.'
            )
        named[name] = model
    return named


def _name_of(model: str) -> str:
    """What to call a model that was given no name: its file or, if all files are called so, its folder."""
    path = Path(model)
    stem = path.name
    for ending in (path.suffix if "/" in model or path.is_file() else "", *ENDINGS):
        stem = stem.removesuffix(ending) if ending else stem
    folder = path.absolute().parent.name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder if stem in EVERY_RUN and folder else stem).strip("-._")
    return name[:64] or "model"


def _facts(model: ServedModel) -> str:
    network, most = model.network, model.batcher.max_batch
    height, width = network.size_hw
    classes = f"{len(model.names)} class{'es' * (len(model.names) != 1)}"
    at_once = f", {network.num_parallel} at once" if network.num_parallel > 1 else ""
    return f"{network.architecture}, {height}x{width}, {classes}; {network.runtime}, batches of up to {most}{at_once}"


def _load(
    model: str,
    max_batch: int,
    *,
    threads: int | None,
    device: str | None,
    precision: Literal["fp32", "bf16"] | None,
    hint: Literal["latency", "throughput"],
    trust: bool,
) -> Network:
    from rtdetrv4.runtime.engines import is_exported
    from rtdetrv4.serving import Network

    if is_exported(model):
        return Network.of_file(
            model,
            max_batch=max_batch,
            device=device,
            threads=threads,
            precision=precision,
            hint=hint,
            trust=trust,
        )
    if threads is not None or hint != "latency":
        raise ConfigError(f'--threads and --hint are for exported files; got "{model}".')
    require("torch", "torch")
    return network_of(detector_of(model, device=device, precision=precision, trust=trust))


def network_of(detector: Detector) -> Network:
    """A detector of PyTorch, as the server runs it.

    Raises:
        WeightsError: it has no trained weights.
    """
    import torch

    from rtdetrv4.serving import Network
    from rtdetrv4.types import ClassMap

    names, model, metadata = detector.names, detector.recipe.model, detector.metadata
    return Network(
        architecture=model.name,
        runtime=f"PyTorch {torch.__version__} on {str(detector.device).upper()}",
        classes=detector.classes or ClassMap(names, tuple(range(len(names)))),
        size_hw=model.image_size,
        resize=model.resize,
        run=detector.run,
        training_hw=None if metadata is None else metadata.training_hw(model.image_size),
        thresholds=None if metadata is None else metadata.thresholds,
    )


def _whole(option: str, number: float, unit: float) -> int:
    """A limit in bytes or pixels; no machine has as many as it may be at most."""
    if not number * unit < MOST:
        raise ConfigError(f"--{option}: got {number:g}, expected less than {MOST / unit:g}.")
    return int(number * unit)
