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
import itertools
import re
import reprlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

MAX_MESSAGE = 2000
"""Letters of a message: names, values and lines of files are repeated in it, and a stranger's may be of any length."""
MAX_NAME = 200
"""Letters of a name for which a similar one is looked for, which takes the square of that."""
MAX_NAMES = 5000
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, with which a name of a file could write to any place of a terminal; what turns the direction of
the text around it; and what no terminal can write."""


class RTDETRError(Exception):
    """Base of every error this package raises on purpose."""

    def __str__(self) -> str:
        return one_line(super().__str__())


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


def one_line(text: str, max_length: int = MAX_MESSAGE) -> str:
    r"""Text for a terminal or a log, whatever a stranger's names hold: in one line, not too long, controlling nothing.

    >>> one_line("a\nb \x1b[2J")
    'a b \\x1b[2J'
    """
    text = str(text)
    if len(text) > max_length:
        text = f"{text[: max_length * 3 // 4]} … {text[-max_length // 5 :]}"
    return _UNPRINTABLE.sub(lambda found: " " if found[0].isspace() else ascii(found[0])[1:-1], text)


def shown(value: Any) -> str:
    """A value of a file for a message, like `repr`, but only the beginning of long ones."""
    return _SHORT.repr(value)


def _short_repr() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    short.maxlevel, short.maxdict = 4, 6
    return short


_SHORT = _short_repr()


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A suggestion to append to the message about an unknown name, or an empty string.

    >>> did_you_mean("epocs", ["epochs", "batch"])
    ' Did you mean "epochs"?'
    """
    names = [name for name in itertools.islice(known, MAX_NAMES) if len(name) <= MAX_NAME]
    near = difflib.get_close_matches(given, names, n=1) if len(given) <= MAX_NAME else None
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
