"""`rtdetrv4 train`, `val`, `predict`, `export`, `verify` and the other commands that `rtdetrv4 --help` lists.

A user's mistake prints one line to stderr and exits with code 2; an interrupted command exits with code 130; a training
of which only the final report failed exits with code 1, and so does `doctor` if it finds something. Slow imports happen
inside the commands, so that help and error messages appear quickly.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
import typer.core

import rtdetrv4
from rtdetrv4.cli.catalogs import convert, models, teachers
from rtdetrv4.cli.datasets import doctor
from rtdetrv4.cli.deployment import bench, export, verify
from rtdetrv4.cli.inference import predict, val
from rtdetrv4.cli.serving import serve
from rtdetrv4.cli.training import augment, compare, demo, pretrain, report, train
from rtdetrv4.errors import ConfigError, RTDETRError, first_line, one_line
from rtdetrv4.keywords import ANSWERS, NAMES_ELSEWHERE

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
# In the order in which the help lists them.
_COMMANDS = {
    "Try it": (demo,),
    "Your data": (doctor, augment),
    "Train": (train, pretrain, compare, report),
    "Use": (predict, val, serve),
    "Deploy": (export, verify, bench),
    "Models": (models, teachers, convert),
}
_BEGINNING = "Begin with [bold]rtdetrv4 demo[/bold], or with your data: [bold]rtdetrv4 doctor DATA[/bold]."
# The extra that each command needs; the others need at most `torch`.
_EXTRAS = {
    "train": "train",
    "pretrain": "train",
    "augment": "train",
    "doctor": "train",
    "val": "train",
    "compare": "train",
    "report": "train",
    "teachers": "train",
    "export": "export",
    "serve": "serve",
    "demo": "demo",
}
# What other packages call our commands.
_COMMANDS_ELSEWHERE = {
    "benchmark": "bench",
    "detect": "predict",
    "eval": "val",
    "evaluate": "val",
    "finetune": "train",
    "infer": "predict",
    "inference": "predict",
    "test": "val",
    "track": "predict --track bytetrack",
    "tune": "compare",
    "validate": "val",
}
# What a value should have been, in the words of the library that checks it, and in ours.
_EXPECTED = (
    (r"Input should be a valid integer.*", "expected a whole number"),
    (r"Input should be a valid number.*", "expected a number"),
    (r"Input should be greater than or equal to (\S+)", r"expected at least \1"),
    (r"Input should be less than or equal to (\S+)", r"expected at most \1"),
    (r"Input should be greater than (\S+)", r"expected more than \1"),
    (r"Input should be less than (\S+)", r"expected less than \1"),
)
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # not every version of typer exports it


class _OneLine(logging.Formatter):
    """Writes messages so that no name of a file or class in them controls the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging calls it so
        record.message = one_line(record.message)
        return super().formatMessage(record)


class _Commands(typer.core.TyperGroup):
    """Says how to resume after Ctrl-C, because typer's own reaction depends on its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # its message says where training stopped
            print(" ".join(f"interrupted. {stop}".split()), file=sys.stderr)
            return EXIT_INTERRUPTED


app: typer.Typer = typer.Typer(
    cls=_Commands,
    name="rtdetrv4",
    help="Real-time object detection transformers, taught by vision foundation models.",
    epilog=_BEGINNING,
    add_completion=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(rtdetrv4.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("rtdetrv4").setLevel(logging.INFO)


def _finite(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes no infinite number, and none that is not a number."""

    @functools.wraps(command)
    def checked(**options: Any) -> Any:
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"--{name.replace('_', '-')}: got {value}, expected a finite number.")
        return command(**options)

    return checked


for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_finite(_command))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the arguments; None: those of the process.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 if interrupted, or 1 if only the report on a training failed or
        `doctor` found something.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that are not UTF-8
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata of images, which are read without them
    args = list(sys.argv[1:] if args is None else args)
    if any("\0" in arg for arg in args):  # no shell passes one, but Python may
        return _mistake("an argument has a null character, which no file and no setting has")
    command = next((arg for arg in args if not arg.startswith("-")), "")
    try:
        if command in ("train", "pretrain"):
            args = _with_resume(args)
        code = app(args, prog_name="rtdetrv4", standalone_mode=False)
    except _UsageError as error:
        return _mistake(_usage_message(error, args))
    except RTDETRError as error:
        return _mistake(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "rtdetrv4").partition(".")[0]
        if package == "rtdetrv4":
            raise
        extra = _EXTRAS.get(command, "torch")
        return _mistake(f'{package} is not installed; install it with: pip install "rtdetrv4[{extra}]"')
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "rtdetrv4":
            raise
        return _mistake(_unfit_packages(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _mistake(f"{error.filename}: {error.strerror}")
    except (RuntimeError, MemoryError) as error:
        if "torchvision::" in str(error):  # its operators were built for another torch
            return _mistake(_unfit_packages(error))
        if not _is_out_of_memory(error):
            raise
        cause = first_line(error).partition(" GPU ")[0]  # which begins an account of all its memory
        return _mistake(f"out of memory ({cause}). Use a smaller batch or image size, or close other programs.")
    return code if isinstance(code, int) else 0


def _given(names: Sequence[str], args: Sequence[str]) -> str:
    """What an option got, if it is found."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, separator, value = word.partition("=")
        if name in names:
            return f'got "{value if separator else following}", '
    return ""


def _with_resume(args: list[str]) -> list[str]:
    """Turn --resume auto into one option: typer knows none whose value may be missing.

    Raises:
        ConfigError: --resume has another value.
    """
    rewritten = []
    words = iter(args)
    for word in words:
        name, separator, value = word.partition("=")
        if name == "--resume":
            value = value if separator else next(words, "")
            if value == "auto":
                rewritten.append("--auto-resume")
                continue
            if separator or (value and not value.startswith("-")):
                raise ConfigError(f'--resume: got "{value}", expected no value or auto. The run is named by --out.')
            rewritten += [name, *([value] if value else [])]
            continue
        rewritten.append(word)
    return rewritten


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from rtdetrv4.ops.device import is_out_of_memory

    return is_out_of_memory(error)


def _mistake(message: str) -> int:
    print(f"error: {one_line(' '.join(message.split()))}", file=sys.stderr)
    return EXIT_MISTAKE


def _unfit_packages(error: Exception) -> str:
    """What to do about installed packages that cannot be loaded together."""
    versions = []
    for package in ("torch", "torchvision"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    found = " and ".join(versions) or "no torch"
    return (
        f"the installed packages do not fit together: {first_line(error)}. Found {found}; "
        "install both anew, in one command and from the same index."
    )


def _hint(option: str, context: Any) -> str:
    """What to write in place of an option that a command does not have, but others do."""
    name = option.removeprefix("--").replace("-", "_")
    known = {opt.removeprefix("--") for param in context.command.params for opt in param.opts}
    if name == "source" and "source" not in known:
        return "What to look at is given without an option, as in: rtdetrv4 predict photo.jpg"
    if (meant := NAMES_ELSEWHERE.get(name)) in known:
        return f'Did you mean "--{meant}"?'
    return ANSWERS[name][1] if name in ANSWERS and ANSWERS[name][0] in known else ""


def _missing(error: Any) -> str | None:
    """What to say if an option or argument must be given, and what it is; None for any other mistake."""
    if type(error).__name__ != "MissingParameter" or not error.param.help:  # typer does not export the class
        return None
    kind = error.param.param_type_name
    name = max(error.param.opts, key=len) if kind == "option" else error.param.metavar or error.param.name.upper()
    return f"Missing {kind} {name}: {error.param.help}"


def _usage_message(error: Any, args: Sequence[str]) -> str:
    possibilities = getattr(error, "possibilities", None)
    if message := _missing(error):
        return message
    if (option := getattr(error, "option_name", "")) and (hint := _hint(option, error.ctx)):
        return f"{error.message}. {hint}"
    if possibilities:
        return f'{error.message}. Did you mean "{possibilities[0]}"?'
    message = error.format_message()
    if wrong := re.match(r"No such command '(.*)'", message):
        if meant := _COMMANDS_ELSEWHERE.get(wrong[1]):
            return f'No such command: {wrong[1]}. Did you mean "{meant}"?'
        return message if "Did you mean" in message else f"{message} See rtdetrv4 --help."
    for text, expected in _EXPECTED:
        if found := re.search(text, message):
            names = getattr(error.param, "opts", ())
            return f"{names[-1] if names else 'argument'}: {_given(names, args)}{found.expand(expected)}."
    if re.search(r"unexpected extra argument.*=", message):
        return f'{message}. Options are written "--epochs 50", other settings "--set name=value".'
    return message
