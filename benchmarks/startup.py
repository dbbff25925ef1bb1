"""How long `import rtdetrv4` and `rtdetrv4 --help` take, in seconds, in a fresh process each time.

    python benchmarks/startup.py

An empty Python program is timed as well. The first round, which warms the file cache, does not count.

Expected: under half a minute.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from _measure import Results, arguments, in_turn

PROGRAM = Path(sys.executable).with_name("rtdetrv4")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import rtdetrv4": [sys.executable, "-c", "import rtdetrv4"],
    "rtdetrv4 --help": [str(PROGRAM), "--help"],
}
TARGETS = {"import rtdetrv4": 0.3, "rtdetrv4 --help": 0.6}


def run(command: list[str]) -> str:
    """Run a command, and return what it writes to stderr."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def import_times(command: list[str], top: int = 10) -> dict[str, float]:
    """Return the modules with the longest import times of their own, in milliseconds."""
    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", run([sys.executable, "-X", "importtime", *command]))
    ordered = sorted(((int(own) / 1000, name) for own, name in lines), reverse=True)[:top]
    return {name: own for own, name in ordered}


def main() -> None:
    """Time the commands."""
    args = arguments(__doc__, repeats=15).parse_args()
    results = Results("startup", args)
    works = {name: lambda command=command: run(command) for name, command in COMMANDS.items()}
    seconds = in_turn(works, 1 if args.quick else args.repeats)
    for name, target in TARGETS.items():
        empty = seconds["python -c pass"]
        results.add(f"{name}, seconds", seconds[name].median, target, seconds=seconds[name], empty_program_s=empty)
        command = COMMANDS[name]
        words = command[1:] if command[0] == sys.executable else command
        results.note(**{f"profile of {name}, ms": import_times(words)})
    results.save()


if __name__ == "__main__":
    main()
