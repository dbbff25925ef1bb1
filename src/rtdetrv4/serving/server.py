"""The process that serves."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvicorn

from rtdetrv4.errors import ConfigError
from rtdetrv4.serving.access import Access
from rtdetrv4.serving.app import create_app
from rtdetrv4.serving.connection import Connection
from rtdetrv4.serving.fetching import Fetcher
from rtdetrv4.serving.service import Service

BACKLOG = 256
"""Connections that the system keeps for the time when there is a moment for them."""
STOP_S = 5
"""How much longer than a request may take the server waits for the last ones."""
SPARE_FILES = 64
"""Files that a process has open beside its connections."""


class Place(NamedTuple):
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    """For https."""
    key: Path | None = None


def open_socket(place: Place) -> socket.socket:
    """Take an address.

    Raises:
        ConfigError: it cannot be had.
    """
    if not 0 <= place.port < 2**16:
        raise ConfigError(f"port: got {place.port}, expected 0 (any that is free) to {2**16 - 1}.")
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host: cannot listen at {place.host}, port {place.port}: {error}.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port: cannot listen at {place.host}, port {place.port}: {error.strerror}; give another with --port."
        ) from None
    return listening


def check_files(connections: int) -> None:
    """Check that the system lets this process have so many connections.

    Raises:
        ConfigError: it does not.
    """
    with contextlib.suppress(ImportError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most != resource.RLIM_INFINITY and connections + SPARE_FILES > most:
            raise ConfigError(
                f"max-connections: got {connections}, but this process may open {most} files; raise that with "
                f"`ulimit -n {connections + SPARE_FILES}`, or allow fewer connections."
            )


class Server(uvicorn.Server):
    """Serves until it is told to stop, and then answers what it took.

    Args:
        service: the models.
        access: who may ask.
        place: where to listen.
        fetcher: what fetches images by URL; None for the usual one.
        announce: called when requests may come.
        logs_requests: whether to log every request.

    Raises:
        ConfigError: the certificate cannot be used, or the system does not allow so many connections.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        place: Place | None = None,
        *,
        fetcher: Fetcher | None = None,
        announce: Callable[[], None] = lambda: None,
        logs_requests: bool = False,
    ) -> None:
        place = place or Place()
        limits = service.limits
        check_files(limits.connections)
        config = uvicorn.Config(
            create_app(service, access, fetcher=fetcher),
            http=cast("Any", partial(Connection, limits=limits)),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",  # strangers decide how many warnings there are
            access_log=logs_requests,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=math.ceil(limits.idle_s),
            timeout_graceful_shutdown=math.ceil(limits.timeout_s) + STOP_S,
            h11_max_incomplete_event_size=limits.head_bytes,
            ssl_certfile=place.certificate,
            ssl_keyfile=place.key,
        )
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as above
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if logs_requests:
            logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        try:
            config.load()
        except OSError as error:  # of ssl too
            raise ConfigError(f"certificate: {place.certificate} or its key cannot be used: {error}.") from None
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._announce()
