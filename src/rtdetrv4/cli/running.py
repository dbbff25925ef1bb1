"""What commands do around their work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, cast

import rtdetrv4
from rtdetrv4.cli.options import device_of, given_options
from rtdetrv4.errors import ConfigError

if TYPE_CHECKING:
    from rtdetrv4 import Detector


def detector_of(
    model: str | None,
    weights: str | None = None,
    device: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    *,
    trust: bool = False,
) -> Detector:
    """A detector of a model, weights or an exported file, which alone may have a precision."""
    from rtdetrv4.runtime.engines import check_name, is_exported

    if precision is not None:
        if model is None or not is_exported(model) or weights is not None:
            raise ConfigError(f'--precision {precision} is for exported files; got "{weights or model}".')
        # It has the methods of a detector that its commands use.
        return cast("Detector", rtdetrv4.ExportedDetector(model, device=device, precision=precision, trust=trust))

    if model is None or not is_exported(model):  # else the runtime has its own words for devices
        device = device_of(device)
        if model is not None and weights is None:
            check_name(model)
        import torch  # noqa: F401 - without it, `main` names the extra of the command: maybe more than Detector's

    return rtdetrv4.Detector(**given_options(model=model, weights=weights, device=device, trust=trust or None))


def check_resume(*, resume: bool, auto_resume: bool) -> None:
    """Raise if both are wanted, which say different things where there is no run."""
    if resume and auto_resume:
        raise ConfigError("--resume needs a run to resume, and --auto-resume does not; give one of them.")


def can_resume(out: str | None, default: str) -> bool:
    """Whether there is a run to resume in `out`, or in folders named after `default`."""
    from rtdetrv4.run_folder import RunFolder

    return (RunFolder(out) if out else RunFolder.latest(default)).can_resume


def run_to_resume(out: str | None, default: str) -> tuple[str, str]:
    """The recipe of the run in `out`, or of the latest one in folders named after `default`, and its folder."""
    from rtdetrv4.run_folder import RunFolder

    folder = RunFolder(out) if out else RunFolder.latest(default)
    folder.require_state()
    return str(folder.recipe), str(folder.path)


@contextmanager
def interruptible(what_remains: Callable[[], str]) -> Iterator[None]:
    """Make Ctrl-C say what remains of the work inside, and a SIGTERM clean up in the same way."""

    def stop_here(*_: object) -> None:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop_here) if is_main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or what_remains()) from None
    finally:
        if is_main:  # None: the handler before was not Python's, and cannot be put back
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def is_main_process() -> bool:
    """Whether this is the first of the processes that run one command together, as under torchrun."""
    from accelerate import PartialState

    return PartialState().is_main_process
