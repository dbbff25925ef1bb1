"""Kill a training again and again, and break what is around it: does it end with the weights of an undisturbed one?

    python benchmarks/robustness/survival.py --out runs/survival
    python benchmarks/robustness/survival.py --out runs/survival --only kills --kills 30

The run is small (24 images of 64 px, a teacher, `distillation.mode: auto`, every stage) and always the same command
with `--resume auto`. `kills` sends SIGKILL to all its processes at random moments, until so many have hit; `ranks` does
the same with two processes, and every other time to one of them only; `moments` kills it inside of what is rarely hit
by chance: while a checkpoint is written, between two files, in the evaluation, at a change of stage, in the report.
`faults` fills the disk, makes it read-only, damages files, and more; those that need to mount a file system are left
out, and named, where that is not allowed. Results go to benchmarks/results/survival.json.

Expected: half an hour on two cores. It resumes, too: what has its result is not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.training.checkpoint import load_checkpoint

RESULTS = Path(__file__).parents[1] / "results" / "survival.json"
EPOCHS = 12
STAGES = {"basic_epochs": 2, "mosaic_until": 6, "refine_from": 9, "flat_epoch": 6, "no_aug_epochs": 1}
SETTINGS = {
    **{f"schedule.{name}": value for name, value in STAGES.items()},
    "schedule.warmup_steps": 4,
    "distillation.mode": "auto",
    "data.workers": 1,
    "run.save_minutes": 0.01,
    "run.tracker": "none",
    "run.derive": False,
}
MOMENTS: Mapping[str, tuple[str, int]] = {
    "while last.pt is written": ("rtdetrv4.training.checkpoint:torch.save", 7),
    "before last.pt gets its name": ("rtdetrv4.outputs:Path.replace", 12),
    "between the best weights and their state": ("rtdetrv4.training.loop:save_checkpoint", 9),
    "in the evaluation": ("rtdetrv4.evaluation.coco_evaluator:CocoEvaluator.update", 4),
    "at the change to refinement": ("rtdetrv4.training.loop:Trainer._restart_from_best", 0),
    "while the log is cut on resume": ("rtdetrv4.training.observers:write_text", 0),
    "in the final report": ("rtdetrv4.report:write_report", 0),
}
"""Where the process kills itself: a function, and which of its calls."""
_DYING = """
import importlib, os, signal, sys
place, number = sys.argv[1], int(sys.argv[2])
module, _, path = place.partition(":")
*owners, name = path.split(".")
owner = importlib.import_module(module)
for each in owners:
    owner = getattr(owner, each)
work, calls = getattr(owner, name), []
def dying(*args, **options):
    calls.append(None)
    if len(calls) - 1 == number:
        if name == "save":  # of torch: with half of the file written
            args[1].write(b"half"); args[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*args, **options)
setattr(owner, name, dying)
from rtdetrv4.cli import main
sys.exit(main(sys.argv[3:]))
"""


def command(data: Path, run: Path) -> list[str]:
    """The arguments of the run, always the same."""
    given = ["--model", "test", "--imgsz", "64", "--batch", "8", "--epochs", str(EPOCHS), "--device", "cpu"]
    given += ["--teacher", "efficientnet_lite2", "--weights", "none", "--amp", "off"]
    for name, value in SETTINGS.items():
        given += ["--set", f"{name}={json.dumps(value)}"]
    return ["train", "--data", str(data), "--out", str(run), *given, "--resume", "auto"]


def start(arguments: list[str], log: Path, ranks: int = 1, dies: tuple[str, int] | None = None) -> subprocess.Popen:
    """Start the run in a process group of its own."""
    if ranks > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "rtdetrv4.cli"]
    elif dies:
        launch = ["-c", _DYING, dies[0], str(dies[1])]
    else:
        launch = ["-m", "rtdetrv4.cli"]
    with log.open("ab") as file:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *launch, *arguments], stdout=file, stderr=file, start_new_session=True, env=environment
        )


def digest(run: Path) -> str:
    """One hash of the weights, and of the state without what a clock says."""
    # Not the bytes of the file, whose header has its entries in any order.
    found = hashlib.sha256(_bytes(load_file(run / "weights.safetensors")))
    state = load_checkpoint(run / "last.pt")
    for part in ("student", "ema", "optimizer", "modulation", "rng"):
        found.update(_bytes(state[part]))
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["type"] == "epoch":
            clocks = ("seconds", "images_per_second", "shares")
            found.update(json.dumps({key: record[key] for key in record if key not in clocks}).encode())
    return found.hexdigest()[:16]


def _bytes(value: Any) -> bytes:
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + _bytes(value[key]) for key in value)
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value))
    return value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()


def where(run: Path) -> str:
    """How far the run has come, for the table."""
    log = run / "log.jsonl"
    if (run / "report.html").is_file():
        return "report"
    if not log.is_file():
        return "start"
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line]
    steps = [json.loads(line)["step"] for line in lines[1:] if line.endswith("}")]
    return f"after step {max(steps, default=0)}"


def kills(out: Path, data: Path, number: int, ranks: int, whole: str, duration: float) -> dict[str, Any]:
    """Kill until so many have hit a living run; restart runs that come to their end."""
    rng, moments, ends, waits = random.Random(ranks), [], [], []
    run, log = out / f"killed-{ranks}", out / f"killed-{ranks}.log"
    shutil.rmtree(run, ignore_errors=True)
    while len(moments) < number or not ends:
        is_fresh, began = not run.exists(), time.monotonic()
        process = start(command(data, run), log, ranks)
        wait = rng.uniform(0.15 * duration, 1.1 * duration) if len(moments) < number else 3600.0
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            moments.append(where(run))
            one = len(moments) % 2 == 0 and ranks > 1
            began = time.monotonic()
            if not (one and _kill_one(process.pid)):
                _kill_all(process.pid)
            process.wait()
            if one:
                waits.append(round(time.monotonic() - began, 1))
        else:
            if process.returncode != 0:
                raise SystemExit(f"The run failed with {process.returncode}; see {log}.")
            ends.append(digest(run))
            shutil.rmtree(run)
            if is_fresh:  # other programs come and go
                duration = time.monotonic() - began
        last = moments[-1] if moments else "-"
        print(f"  {len(moments)} kills, {len(ends)} ends, {ends.count(whole)} the same, last kill {last}", flush=True)
    return {
        "kills": len(moments),
        "moments": moments,
        "ends": len(ends),
        "same": ends.count(whole),
        "seconds_until_the_others_ended": waits,
    }


def _kill_all(pid: int) -> None:
    """Kill a process and all that it has started: torchrun's ranks are in process groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _kill_one(launcher: int) -> bool:
    """Kill one of torchrun's ranks; False if none has begun."""
    for child in reversed(psutil.Process(launcher).children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
            return True
    return False


def moment(out: Path, data: Path, name: str, whole: str) -> dict[str, Any]:
    """Let the run kill itself at one moment, and resume it."""
    run, log = out / "moment", out / "moment.log"
    shutil.rmtree(run, ignore_errors=True)
    if name == "while the log is cut on resume":
        first = start(command(data, run), log, dies=("rtdetrv4.training.loop:Trainer._validate", 5))
        first.wait()
    died = start(command(data, run), log, dies=MOMENTS[name]).wait() == -signal.SIGKILL
    at = where(run)
    resumed = start(command(data, run), log).wait()
    return {"died": died, "at": at, "exit_code": resumed, "same": resumed == 0 and digest(run) == whole}


# ---- faults ---------------------------------------------------------------------------------------------------------


def epochs_done(run: Path) -> int:
    """How many epochs the log has."""
    log = run / "log.jsonl"
    return log.read_text(encoding="utf-8").count('"type": "epoch"') if log.is_file() else 0


def wait_for_epoch(process: subprocess.Popen, run: Path, number: int) -> None:
    """Wait until so many epochs are over, or the run is."""
    while process.poll() is None and epochs_done(run) < number:
        time.sleep(0.02)


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[None]:
    """A small file system of its own; an error if that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def full_disk(out: Path, data: Path, log: Path) -> tuple[Path, list[str]]:
    """The disk fills up for three epochs."""
    disk = out / "disk"
    with mounted(disk, 200):
        run = disk / "run"
        process = start(command(data, run), log)
        wait_for_epoch(process, run, 3)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
        wait_for_error(process, log)
        filler.unlink(missing_ok=True)
        process.wait()
        shutil.copytree(run, out / "fault")
    return out / "fault", ["could not be written"]


def wait_for_error(process: subprocess.Popen, log: Path) -> None:
    """Wait until the run has noticed, or is over."""
    while process.poll() is None and "could not be written" not in log.read_text(encoding="utf-8"):
        time.sleep(0.05)


@contextlib.contextmanager
def drive(out: Path) -> Iterator[Path]:
    """A drive of its own, with ext4, that can be frozen and whose files can be locked."""
    image, disk = out / "disk.img", out / "disk"
    disk.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(200 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True, capture_output=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)
        image.unlink(missing_ok=True)


def read_only(out: Path, data: Path, log: Path) -> tuple[Path, list[str]]:
    """The folder and all in it turn read-only for a while."""
    with drive(out) as disk:
        run = disk / "run"
        process = start(command(data, run), log)
        wait_for_epoch(process, run, 3)
        # Not by mounting it read-only, which waits until no file is open, and the lock of a run always is.
        subprocess.run(["chattr", "-R", "+i", str(run)], check=True)
        wait_for_error(process, log)
        subprocess.run(["chattr", "-R", "-i", str(run)], check=True)
        process.wait()
        shutil.copytree(run, out / "fault")
    return out / "fault", ["could not be written"]


def hanging_drive(out: Path, data: Path, log: Path) -> tuple[Path, list[str]]:
    """The drive with the run does not answer for a minute."""
    with drive(out) as disk:
        run = disk / "run"
        process = start(command(data, run), log)
        wait_for_epoch(process, run, 3)
        subprocess.run(["fsfreeze", "-f", str(disk)], check=True)
        time.sleep(60)
        subprocess.run(["fsfreeze", "-u", str(disk)], check=True)
        process.wait()
        shutil.copytree(run, out / "fault")
    return out / "fault", []


def damaged(name: str) -> Callable[[Path, Path, Path], tuple[Path, list[str]]]:
    """A byte of a file changes between two parts of the run."""

    def fault(out: Path, data: Path, log: Path) -> tuple[Path, list[str]]:
        run = out / "fault"
        process = start(command(data, run), log)
        wait_for_epoch(process, run, 4)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run / name).write_bytes(content)
        start(command(data, run), log).wait()
        return run, ["is damaged: the checksum of"] if name == "last.pt" else []

    return fault


def terminated(out: Path, data: Path, log: Path) -> tuple[Path, list[str]]:
    """SIGTERM, as of a scheduler, five times."""
    run = out / "fault"
    for epoch in (1, 3, 5, 7, 10):
        process = start(command(data, run), log)
        wait_for_epoch(process, run, epoch)
        process.terminate()
        process.wait()
    start(command(data, run), log).wait()
    return run, ["Stopped in epoch"]


def lost_images(out: Path, data: Path, log: Path) -> tuple[Path, list[str]]:
    """An image is deleted during the run; the weights may differ, the run may not fail."""
    copy = out / "data"
    shutil.copytree(data, copy, dirs_exist_ok=True)
    run = out / "fault"
    process = start(command(copy, run), log)
    wait_for_epoch(process, run, 2)
    sorted((copy / "train").glob("*.jpg"))[0].unlink()
    process.wait()
    return run, ["cannot be read"]


FAULTS: Mapping[str, tuple[Callable[[Path, Path, Path], tuple[Path, list[str]]], bool]] = {
    "the disk is full for a while": (full_disk, True),
    "the folder is read-only for a while": (read_only, True),
    "the drive does not answer for a minute": (hanging_drive, True),
    "last.pt is damaged": (damaged("last.pt"), True),
    "best.pt is damaged before refinement": (damaged("best.pt"), True),
    "SIGTERM, five times": (terminated, True),
    "an image is deleted": (lost_images, False),
}
"""What breaks something, and whether the weights must be the same in the end."""


def fault(out: Path, data: Path, name: str, whole: str) -> dict[str, Any]:
    """Break one thing, and say what became of the run."""
    work, must_be_same = FAULTS[name]
    log = out / "fault.log"
    shutil.rmtree(out / "fault", ignore_errors=True)
    log.write_text("", encoding="utf-8")
    try:
        run, words = work(out, data, log)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        return {"left_out": f"not allowed or not possible here: {error}"}
    told = all(word in log.read_text(encoding="utf-8") for word in words)
    is_complete = (run / "report.html").is_file()
    same = is_complete and digest(run) == whole
    return {"complete": is_complete, "told": told, "same": same if must_be_same else None}


def main() -> None:
    """Do everything that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--only", default="kills,ranks,moments,faults")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rank-kills", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--anew", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    data = write_shapes(out / "shapes", num_train=24, num_val=8, image_size=64)
    is_known = options.results.is_file() and not options.anew
    results: dict[str, Any] = json.loads(options.results.read_text(encoding="utf-8")) if is_known else {}

    def keep(kind: str, name: str, result: object) -> None:
        results.setdefault(kind, {})[name] = result
        options.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"{kind}, {name}: {result}", flush=True)

    wanted = options.only.split(",")
    for ranks in sorted({1, 2 if "ranks" in wanted else 1}):
        run = out / f"whole-{ranks}"
        began = time.monotonic()
        if start(command(data, run), out / f"whole-{ranks}.log", ranks).wait():
            raise SystemExit(f"The undisturbed run failed; see {out / f'whole-{ranks}.log'}.")
        duration, whole = time.monotonic() - began, digest(run)
        clock = out / f"whole-{ranks}.seconds"
        if not clock.is_file():  # a second call finds the run complete
            clock.write_text(str(duration), encoding="ascii")
        duration = float(clock.read_text(encoding="ascii"))
        kind, number = ("kills", options.kills) if ranks == 1 else ("ranks", options.rank_kills)
        name = f"{ranks} process" + ("es" if ranks > 1 else "")
        if kind in wanted and name not in results.get(kind, {}):
            keep(kind, name, kills(out, data, number, ranks, whole, duration))
        if ranks == 1:
            for kind, names, work in (("moments", MOMENTS, moment), ("faults", FAULTS, fault)):
                for name in names if kind in wanted else ():
                    if name not in results.get(kind, {}):
                        keep(kind, name, work(out, data, name, whole))


if __name__ == "__main__":
    main()
