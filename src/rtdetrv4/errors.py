"""The errors of this package, as one tree.

```
RTDETRError
├── ConfigError             a setting is unknown, of the wrong type, or contradicts another
├── DatasetError            images or annotations cannot be used
├── WeightsError            a checkpoint cannot be read, or does not fit the model
├── SourceError             an image, video or folder given to `predict` cannot be read
├── ExportError             an exported model is missing, broken, or differs from PyTorch
├── NonFiniteError          training produced NaN or infinity and cannot go on
└── MissingDependencyError  an optional package is needed; the message names the install command
```

Every message says what happened, what was given, what was expected, and how to fix it. On the command line, an error is
one line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class RTDETRError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(RTDETRError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DatasetError(RTDETRError, ValueError):
    """Images or annotations cannot be used."""


class WeightsError(RTDETRError, ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class SourceError(RTDETRError, ValueError):
    """An image, video or folder given to `predict` cannot be read."""


class ExportError(RTDETRError, RuntimeError):
    """An exported model is missing, broken, or differs from PyTorch."""


class NonFiniteError(RTDETRError, ArithmeticError):
    """Training produced NaN or infinity and cannot go on."""


class MissingDependencyError(RTDETRError, ImportError):
    """An optional package is needed; the message names the install command."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A suggestion to append to the message about an unknown name, or an empty string.

    >>> did_you_mean("epocs", ["epochs", "batch"])
    ' Did you mean "epochs"?'
    """
    near = difflib.get_close_matches(given, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's message, or the name of its class if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import an optional `module`, or say how to install it: with an extra, or on its own if `extra` is None.

    Raises:
        MissingDependencyError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise
        package = module.partition(".")[0]
        wanted = package if extra is None else f'"rtdetrv4[{extra}]"'
        raise MissingDependencyError(f"{package} is not installed; install it with: pip install {wanted}") from error
