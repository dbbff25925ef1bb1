"""What hours of video do to memory.

    python benchmarks/video_memory.py
    python benchmarks/video_memory.py weights.onnx --data my_data --minutes 60

`rtdetrv4 predict` gets the clip of video.py again and again, detects in it, draws, and writes a video of each, until it
is stopped. Its memory is looked at every second from outside. It goes up and down with the frames that wait to be
written; the result is the median of the last fifth of the time, divided by that of the first fifth after the first
minute.

Nothing is timed, so the machine need not be idle. Expected: 16 minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from _deployed import case_of
from _measure import Results, arguments
from video import write_clip

MAX_GROWTH = 1.02
SETTLED_S = 60
MOST_CLIPS = 2000
"""Enough for any time that one waits for."""


def main() -> None:
    """Start it, watch it, and stop it."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("model", nargs="?", type=Path, help="file of Detector.export; default: random weights")
    parser.add_argument("--data", type=Path, help="data set with the classes of the model")
    parser.add_argument("--minutes", type=float, default=15, help="how long (default: %(default)s)")
    args = parser.parse_args()
    results = Results("video_memory", args)
    seconds, settled = (8.0, 4.0) if args.quick else (60 * args.minutes, SETTLED_S)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = case_of(args.model, args.data, folder, quick=args.quick)
        clip = folder / "clip.mp4"
        write_clip(case, clip, 10 if args.quick else 250)
        words = [*[str(clip)] * MOST_CLIPS, "--model", str(case.path), "--out", str(folder / "out"), "--save", "video"]
        process = psutil.Popen([sys.executable, "-m", "rtdetrv4.cli", "predict", *words], stdout=subprocess.DEVNULL)
        start, mib = time.monotonic(), []
        while (passed := time.monotonic() - start) < seconds and process.is_running():
            time.sleep(1)
            if passed >= settled:
                mib.append(process.memory_info().rss / 2**20)
        process.terminate()
        if (code := process.wait()) != 130:
            raise SystemExit(f"predict ended with {code}, expected 130, as when it is stopped.")
        fifths = [float(statistics.median(part)) for part in np.array_split(mib, 5)]
        used = {f"fifth {number}": round(each, 1) for number, each in enumerate(fifths, 1)} | {
            "most": round(max(mib), 1)
        }
        videos = len(list((folder / "out").glob("*.mp4")))
        results.add(
            "video in a loop, memory", fifths[-1] / fifths[0], MAX_GROWTH, mib=used, minutes=seconds / 60, videos=videos
        )
    results.note(model=case.metadata.model, image_size=case.metadata.image_size)
    results.save()


if __name__ == "__main__":
    main()
