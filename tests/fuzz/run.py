"""Damaged and made-up input for everything that reads what a stranger made, for a stated time each: `make fuzz`.

Each surface is tried in a process of its own, so that a crash of a native library is a find and not the end. What must
hold: a result or an error of this package, in one line, within the limits of time and memory below. Everything else is
a find; its input is kept in --keep and the number of the attempt makes it again, with --surface NAME --only NUMBER.

`tests/fuzz_server.py`, which needs schemathesis, is run for the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ATTEMPT_S = 20.0
"""The most work that one input may cost; most cost milliseconds."""
WAIT_S = 600.0
"""The longest that one may wait, on a busy machine too."""
START_S = 600.0
"""Importing and making valid files."""
GROWTH_BYTES = 2 << 30
"""How much memory one input may take, beside what the process had before."""
HERE = Path(__file__).parent
SERVER = "server"


class Result(NamedTuple):
    """What came of a surface."""

    surface: str
    inputs: int
    seconds: float
    outcomes: dict[str, int]
    finds: list[dict[str, Any]]


def attempts(name: str, folder: Path, seed: int, first: int, seconds: float, only: int | None) -> None:
    """Try inputs until the time is over, in this process, and write down how each ends."""
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import logging

    from surfaces import SURFACES

    from rtdetrv4.errors import RTDETRError

    logging.disable(logging.CRITICAL)
    surface = SURFACES[name](folder / "files")
    os.chdir(folder)
    note = os.open(folder / "attempt", os.O_RDWR | os.O_CREAT)
    outcomes: Counter[str] = Counter()
    seen: set[str] = set()
    number, begin = (first if only is None else only), time.monotonic()
    while time.monotonic() < begin + seconds:
        os.pwrite(note, f"{number:12}".encode(), 0)
        choose = random.Random(f"{seed} {name} {number}")
        try:
            outcomes[surface.attempt(choose)] += 1
        except RTDETRError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 4000:
                _find(number, "an error of several lines", str(error), seen)
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            _find(number, where, "".join(traceback.format_exception(error)[-6:]), seen)
        number += 1
        if only is not None:
            break
        if number % 20 == 0:
            print(json.dumps({"number": number, "outcomes": outcomes}), flush=True)
    print(json.dumps({"number": number, "outcomes": outcomes, "done": True}), flush=True)


def _find(number: int, what: str, details: str, seen: set[str]) -> None:
    if what not in seen:
        seen.add(what)
        print(json.dumps({"find": what, "number": number, "details": details}), flush=True)


def fuzz(name: str, seconds: float, seed: int, keep: Path) -> Result:
    """Try a surface for some time, in as many processes as it takes."""
    finds: list[dict[str, Any]] = []
    total: Counter[str] = Counter()
    first = inputs = 0
    left = seconds
    while left > 0 and len(finds) < 20:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as text:
            folder = Path(text)
            (folder / "files").mkdir()
            process = _Child(name, folder, seed, first, left)
            ended = process.wait()
            inputs += process.number - first
            total += Counter(process.outcomes)
            left -= process.seconds
            if ended is not None:
                finds.append({"find": ended, "number": process.attempt, "details": process.errors})
                shutil.copytree(folder / "files", keep / f"{name}-{process.attempt}", dirs_exist_ok=True, symlinks=True)
            finds += process.finds
            first = process.attempt + 1
            if ended is None:
                break
    return Result(name, inputs, round(seconds - max(left, 0), 1), dict(total), finds)


class _Child:
    """A process that tries inputs, watched."""

    def __init__(self, name: str, folder: Path, seed: int, first: int, seconds: float) -> None:
        self.number, self.outcomes, self.finds, self.errors = first, {}, [], ""
        self._folder, self._done = folder, False
        self._limit = seconds
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--seed", str(seed)]
        command += ["--first", str(first), "--seconds", str(seconds)]
        self._errors = (folder / "stderr").open("wb")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.seconds = 0.0

    @property
    def attempt(self) -> int:
        """The input that is tried now, or was tried last."""
        try:
            return int((self._folder / "attempt").read_text())
        except (OSError, ValueError):
            return self.number

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # something that a library prints
                content = json.loads(line)
                if "find" in content:
                    self.finds.append(content)
                elif "number" in content:
                    self.number, self.outcomes = content["number"], content["outcomes"]
                    self._done |= content.get("done", False)

    def wait(self) -> str | None:
        """Wait for the end, and return what was wrong with it."""
        watched = psutil.Process(self._process.pid)
        current, since, begin, usual, busy = None, time.monotonic(), None, 0, 0.0
        wrong = None
        while self._process.poll() is None:
            time.sleep(0.05)
            now = time.monotonic()
            is_running = (self._folder / "attempt").exists()
            if is_running and begin is None:
                begin = now
            attempt = self.attempt if is_running else -1
            with contextlib.suppress(psutil.Error):
                memory, work = watched.memory_info().rss, sum(watched.cpu_times()[:2])
                if attempt != current:
                    current, since, usual, busy = attempt, now, memory, work
                elif is_running and memory > usual + GROWTH_BYTES:
                    wrong = f"more than {GROWTH_BYTES >> 30} GB of memory"
                elif is_running and work > busy + ATTEMPT_S:
                    wrong = f"more than {ATTEMPT_S:g} seconds of work"
            if now > since + (WAIT_S if is_running else START_S):
                wrong = f"more than {WAIT_S:g} seconds"
            if wrong is not None:
                self._process.kill()
                break
        self._process.wait()
        self._reader.join(5)
        self._errors.close()
        self.seconds = time.monotonic() - begin if begin is not None else self._limit
        self.errors = (self._folder / "stderr").read_text(errors="replace")[-2000:]
        self.number = max(self.number, self.attempt + (not self._done))
        if wrong is None and not self._done:
            wrong = f"the process ended with {self._process.returncode}"
        return wrong


def fuzz_server(seconds: float) -> Result:
    """Run the fuzzer of the server, for three times as long in all."""
    begin = time.monotonic()
    command = [sys.executable, str(HERE.parent / "fuzz_server.py"), "--seconds", str(int(seconds))]
    done = subprocess.run(command, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if "generated" in line or "damaged images" in line]
    print("\n".join(told), flush=True)
    finds = [] if done.returncode == 0 else [{"find": "see its output", "number": 0, "details": done.stdout[-4000:]}]
    generated = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) generated", done.stdout)]
    answered = [int(count) for line in told if "images" in line for count in re.findall(r"\d+: (\d+)", line)]
    inputs = sum(generated) + sum(answered)
    return Result(SERVER, inputs, round(time.monotonic() - begin, 1), {}, finds)


def main() -> int:
    """Try every surface, print a table, and return whether something was found."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for each surface (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other inputs (default: %(default)s)")
    parser.add_argument("--surface", action="append", help="only this one; may be repeated")
    parser.add_argument("--only", type=int, help="only this attempt, here, with its traceback")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where finds go (default: %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        attempts(given.child, given.folder, given.seed, given.first, given.seconds, None)
        return 0
    from surfaces import SURFACES

    names = given.surface or [*SURFACES, SERVER]
    given.keep.mkdir(parents=True, exist_ok=True)
    if given.only is not None:
        folder = given.keep.resolve() / f"{names[0]}-{given.only}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "files").mkdir(parents=True)
        attempts(names[0], folder, given.seed, 0, 1e9, given.only)
        return 0
    results = []
    for name in names:
        result = fuzz_server(given.seconds) if name == SERVER else fuzz(name, given.seconds, given.seed, given.keep)
        results.append(result)
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.outcomes.items()))
        print(
            f"{name}: {result.inputs} inputs in {result.seconds:g} s: {outcomes}; {len(result.finds)} found", flush=True
        )
        for find in result.finds:
            print(f"  {find['find']} (attempt {find['number']})", flush=True)
        written = json.dumps([each._asdict() for each in results], indent=2)
        (given.keep / "results.json").write_text(written + "\n")
    return int(any(result.finds for result in results))


if __name__ == "__main__":
    sys.exit(main())
