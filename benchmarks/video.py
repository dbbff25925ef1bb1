"""What a video costs beside the network.

    python benchmarks/video.py
    python benchmarks/video.py weights.onnx --data my_data

A clip of 1280×720 is made of validation images that drift. `rtdetrv4 predict` reads it, detects, draws, and writes a
video; beside it, in turn, the runtime gets the same frames, ready and in memory, and nothing else is done. The result
is the time of the first divided by that of the second; it includes loading the model, which the second does not.

Without a model and data, a network with random weights looks at drawn shapes. Expected: 6 minutes.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np
from _deployed import Case, case_of
from _measure import Results, arguments, in_turn

from rtdetrv4 import cli
from rtdetrv4.data.decode import read_image
from rtdetrv4.runtime import preprocess
from rtdetrv4.runtime.engines import open_engine
from rtdetrv4.runtime.sources import read_source
from rtdetrv4.runtime.video_writer import VideoWriter

SIZE_WH = (1280, 720)
FPS = 25
TARGET = 1 / 0.9


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


def main() -> None:
    """Time both."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("model", nargs="?", type=Path, help="file of Detector.export; default: random weights")
    parser.add_argument("--data", type=Path, help="data set with the classes of the model")
    args = parser.parse_args()
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
    results.note(model=case.metadata.model, image_size=case.metadata.image_size, clip_wh=SIZE_WH)
    results.save()


if __name__ == "__main__":
    main()
