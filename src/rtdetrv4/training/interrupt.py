"""Ctrl-C and SIGTERM as requests to stop, which the loop honors once its state is consistent."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger: logging.Logger = logging.getLogger(__name__)


class Interrupt:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second Ctrl-C raises KeyboardInterrupt.

    A SIGTERM after another signal is ignored: torchrun answers Ctrl-C by sending one to its ranks, which have seen the
    Ctrl-C themselves. Outside the main thread, where Python allows no handlers, signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.requested: bool = False
        self._raises = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    @contextmanager
    def raising(self, active: bool = True) -> Iterator[None]:
        """Inside, the first signal raises KeyboardInterrupt: for work whose results may be lost."""
        self._raises = active
        try:
            if active and self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # This is a forked loader worker, which has inherited the handler. It ignores Ctrl-C, because the main
            # process still needs it, and dies of the SIGTERM that the main process sends it at the end.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        again = self.requested
        self.requested = True
        if (again and number == signal.SIGINT) or (self._raises and not again):
            raise KeyboardInterrupt
        if not again:
            how = " Press Ctrl-C again to stop at once, without saving." if number == signal.SIGINT else ""
            logger.warning("Stopping after this step.%s", how)
