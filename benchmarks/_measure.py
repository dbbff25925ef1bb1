"""What the benchmarks share: interleaved timing, profiles, the memory of a fresh process, and result files.

Every result is a ratio, our time divided by the reference's, so smaller is better. Start-up times are divided by one
second.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import importlib.metadata
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

BENCHMARKS = Path(__file__).parent
RESULTS = BENCHMARKS / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "faster-coco-eval",
    "transformers",
    "pycocotools",
    "onnx",
    "onnxruntime",
    "openvino",
    "fastapi",
    "uvicorn",
)


class Timing(NamedTuple):
    """Seconds of one piece of work."""

    median: float
    least: float
    most: float
    repeats: int

    @property
    def summary(self) -> dict[str, float]:
        """The timing as written to a results file."""
        return {**{key: float(f"{value:.5g}") for key, value in self._asdict().items()}, "repeats": self.repeats}


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Time A B A B …, so that a slower machine slows all alike; the first `warmup` rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(warmup + repeats):
        for name, work in works.items():
            gc.collect()
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    measured = {name: values[warmup:] for name, values in seconds.items()}
    return {name: Timing(statistics.median(v), min(v), max(v), repeats) for name, v in measured.items()}


class Side:
    """One side of a comparison, in its own process, so that its process-wide settings do not affect the other.

    Args:
        arguments: command line of a script that calls `serve`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, Any] = json.loads(self._answer())

    def __call__(self) -> None:
        """Do the work once."""
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended early")
        return line


def serve(work: Callable[[], object], facts: Mapping[str, Any]) -> None:
    """Run the other end of `Side`: print the facts, then work once for each line read."""
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        work()
        print(json.dumps("done"), flush=True)


def operator_shares(work: Callable[[], object], top: int = 10) -> dict[str, float]:
    """Return the torch operators with the most CPU time in `work`, as shares of all operators' time."""
    import torch

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        work()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    return _largest(times, top)


def function_shares(work: Callable[[], object], top: int = 10) -> dict[str, float]:
    """Return the Python and C functions with the most time in `work`, as shares of the total."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    times: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():
        label = name if file == "~" else f"{Path(file).name}:{name}"
        times[label] = times.get(label, 0.0) + own
    return _largest(times, top)


def _largest(times: Mapping[str, float], top: int) -> dict[str, float]:
    total = sum(times.values()) or 1.0
    ordered = sorted(times.items(), key=lambda item: -item[1])[:top]
    return {name: round(value / total, 4) for name, value in ordered}


def peak_memory(arguments: Sequence[str]) -> dict[str, float]:
    """Run a script in its own process, and parse the JSON object that it prints last."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def resident_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `getrusage`: on Linux a new process inherits the maximum of its parent.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Make a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only show that it runs; write nothing")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of summary.json (default: %(default)s)")
    return parser


class Results:
    """Collects the results of one script.

    Args:
        script: name of the script, without ".py".
        args: parsed by `arguments`.
    """

    def __init__(self, script: str, args: argparse.Namespace) -> None:
        self._script = script
        self._is_quick: bool = args.quick
        self._folder: Path = args.results
        words = ["--results", str(args.results)]  # where a result was written is irrelevant to it
        given = " ".join(sys.argv[1:]).replace(" ".join(words), "").split()
        given = [Path(word).name if Path(word).is_absolute() else word for word in given]  # as a reader would have it
        self._command = " ".join(["python", f"benchmarks/{script}.py", *given])
        self._entries: list[dict[str, Any]] = []
        self._details: dict[str, Any] = {"environment": environment(), "measured": {}, "notes": {}}

    def add(self, name: str, ratio: float, target: float, **measured: Any) -> None:
        """Add a result, with the values it was computed from."""
        met = ratio <= target
        entry = {
            "name": name,
            "ratio": float(f"{ratio:.4g}"),
            "target": target,
            "met": met,
            "command": self._command,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "commit": commit(),
        }
        self._entries.append(entry)
        values = {key: value.summary if isinstance(value, Timing) else value for key, value in measured.items()}
        self._details["measured"][name] = values
        verdict = "sizes too small to judge" if self._is_quick else "met" if met else "missed"
        print(f"{name}: {ratio:.3g} (target {target}, {verdict}) {json.dumps(values)}", flush=True)

    def note(self, **facts: Any) -> None:
        """Add other facts for readers: parameter counts, FLOP/s, profiles."""
        self._details["notes"].update(facts)
        print(json.dumps(facts), flush=True)

    def save(self) -> None:
        """Write `<script>.json`, and replace the entries of the same names in `summary.json`."""
        if self._is_quick:
            print("quick: nothing written")
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self._folder / f"{self._script}.json", self._details)
        path = self._folder / "summary.json"
        summary = {entry["name"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}
        summary |= {entry["name"]: entry for entry in self._entries}
        _write(path, list(summary.values()))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Describe what a timing depends on besides the code; the one-minute load shows whether the machine was busy."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    facts: dict[str, Any] = {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    if "torch" in sys.modules:
        import torch

        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
    facts["versions"] = {name: version for name in PACKAGES if (version := _version(name))}
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """Return the measured commit, with "+" if the code has changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(BENCHMARKS.parent), *words], stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "src", ":(glob)benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
