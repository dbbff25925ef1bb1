"""What a video costs beside the network, and what an endless one does to memory.

    python benchmarks/video.py
    python benchmarks/video.py weights.onnx --data my_data --minutes 60

A clip of 1280×720 is made of validation images that drift. `rtdetrv4 predict` reads it, detects, draws, and writes a
video; beside it, in turn, the runtime gets the same frames, ready and in memory, and nothing else is done. The result
is the time of the first divided by that of the second; it includes loading the model, which the second does not.

Then the clip is shown in a loop, detected in and written, in a process of its own. Memory is the most after the first
minute, divided by that at its end.

Without a model and data, a network with random weights looks at drawn shapes. Expected: 20 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
from _deployed import Case, case_of
from _measure import Results, arguments, in_turn, peak_memory

from rtdetrv4 import Detector, cli
from rtdetrv4.data.decode import read_image
from rtdetrv4.runtime import PredictionFolder, preprocess
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.overlap import WriteBehind
from rtdetrv4.runtime.sources import read_source
from rtdetrv4.runtime.video_writer import VideoWriter

SIZE_WH = (1280, 720)
FPS = 25
TARGET = 1 / 0.9
MAX_GROWTH = 1.02
SETTLED_S = 60


def write_clip(case: Case, path: Path, num_frames: int) -> None:
    """Write a video of images that drift, with their mirror images where they end."""
    width, height = SIZE_WH
    writer = VideoWriter(path)
    records = itertools.cycle(case.val.records)
    for index in range(num_frames):
        if index % FPS == 0:
            info = next(records).info
            picture = read_image(case.val.image_dir / info.file_name, (info.height, info.width))
            wide = cv2.resize(picture, (width, max(height, round(info.height * width / info.width))))
        shift = np.float32([[1, 0, 3 * (index % FPS)], [0, 1, 2 * (index % FPS)]])
        writer.add(cv2.warpAffine(wide, shift, SIZE_WH, borderMode=cv2.BORDER_REFLECT), index / FPS)
    writer.close()


def ready_frames(case: Case, clip: Path) -> list[np.ndarray]:
    """The frames of a clip as the network takes them."""
    return [preprocess([frame.image], case.metadata.image_size, case.metadata.resize) for frame in read_source(clip)]


def predict(model: Path, clip: Path, out: Path) -> None:
    """Run the command, without the start of Python."""
    words = ["--model", str(model), "--out", str(out), "--save", "video", "--conf", "0.5"]
    if code := cli.main(["predict", str(clip), *words]):
        raise RuntimeError(f"rtdetrv4 predict ended with {code}")


def watch_memory(model: Path, clip: Path, seconds: float) -> None:
    """Detect in a clip again and again, write it, and print the memory of this process as JSON."""
    start = time.monotonic()
    process, mib, is_over = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not is_over.wait(1):
            mib.append((time.monotonic() - start, process.memory_info().rss / 2**20))

    def endless() -> Iterator[np.ndarray]:
        while time.monotonic() - start < seconds:
            yield from (frame.image for frame in read_source(clip))

    thread = threading.Thread(target=watch)
    thread.start()
    frames = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        PredictionFolder(Path(folder, "out"), ["video", "jsonl"]) as results,
        WriteBehind(results.add, size_of=lambda found: found.image.nbytes) as behind,
    ):
        for found in Detector(str(model)).predict(endless(), stream=True, conf=0.5):
            behind.put(found)
            frames += 1
    is_over.set()
    thread.join()
    settled = [used for at, used in mib if at >= min(SETTLED_S, seconds / 4)]
    print(json.dumps({
        "at_one_minute": round(settled[0], 1), "most_after": round(max(settled), 1), "last": round(settled[-1], 1),
        "frames": frames, "seconds": round(mib[-1][0]),
    }))  # fmt: skip


def main() -> None:
    """Time, and watch."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("model", nargs="?", type=Path, help="file of Detector.export; default: random weights")
    parser.add_argument("--data", type=Path, help="data set with the classes of the model")
    parser.add_argument("--minutes", type=float, default=15, help="of the loop (default: %(default)s)")
    parser.add_argument("--watch", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.watch:
        watch_memory(Path(args.watch[0]), Path(args.watch[1]), float(args.watch[2]))
        return
    results = Results("video", args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = case_of(args.model, args.data, folder, quick=args.quick)
        clip = folder / "clip.mp4"
        write_clip(case, clip, 10 if args.quick else 250)
        frames = ready_frames(case, clip)
        engine = open_engine(case.path)
        runs = itertools.count()
        timings = in_turn(
            {
                "whole": lambda: predict(case.path, clip, folder / f"out-{next(runs)}"),
                "network": lambda: [engine(frame) for frame in frames],
            },
            1 if args.quick else args.repeats,
        )
        results.add(
            "video, from file to file",
            timings["whole"].median / timings["network"].median,
            TARGET,
            predict_s=timings["whole"],
            network_s=timings["network"],
            frames=len(frames),
        )
        seconds = 4 if args.quick else 60 * args.minutes
        used = peak_memory([__file__, "--watch", str(case.path), str(clip), str(seconds)])
        results.add("video in a loop, memory", used["most_after"] / used["at_one_minute"], MAX_GROWTH, mib=used)
    results.note(model=case.metadata.model, image_size=case.metadata.image_size, clip_wh=SIZE_WH)
    results.save()


if __name__ == "__main__":
    main()
