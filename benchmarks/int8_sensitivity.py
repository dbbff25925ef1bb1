"""What each part of a detector loses in 8 bits, the basis of what `rtdetrv4.export.int8` leaves in float.

    python benchmarks/int8_sensitivity.py best.onnx --data my_data

Each part is quantized alone, then those that are quantized by default, then all; for ONNX Runtime and for OpenVINO.
Ranges are measured on the training images, accuracy on the validation images. The table is written to
int8_sensitivity.json; docs/research/int8.md explains it.

Expected: 5 minutes on two cores for a hundred images of 320×320.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from _deployed import Evaluation, Run, case_of, onnx_run, openvino_run
from _measure import arguments, environment

from rtdetrv4.export.calibration import CalibrationImages
from rtdetrv4.export.int8 import INT8_PARTS, Quantize, quantize_onnx, quantize_openvino
from rtdetrv4.export.parts import PARTS

RUNTIMES: dict[str, tuple[Quantize, Callable[[Path], Run], str]] = {
    "ONNX Runtime": (quantize_onnx, onnx_run, "int8.onnx"),
    "OpenVINO": (quantize_openvino, openvino_run, "int8.xml"),
}


def main() -> None:
    """Quantize each part alone, and measure."""
    parser = arguments(__doc__, repeats=0)
    parser.add_argument("model", nargs="?", type=Path, help="float32 file of Detector.export; default: random weights")
    parser.add_argument("--data", type=Path, help="data set with the classes of the model")
    parser.add_argument("--val-data", type=Path, help="evaluate on the validation part of this data set instead")
    parser.add_argument("--images", type=int, default=300, help="calibration images (default: %(default)s)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        case = case_of(args.model, args.data, Path(name), quick=args.quick, val_data=args.val_data)
        metadata = case.metadata
        calibration = CalibrationImages(case.train, metadata.image_size, metadata.resize, args.images)
        evaluation = Evaluation(case.val, metadata.image_size, metadata.resize)
        reference = onnx_run(case.path)
        evaluation.refer_to(reference)
        whole = evaluation(reference)
        facts = {"calibration_images": len(calibration), "val_images": len(evaluation.inputs), "ap": whole.ap}
        print(json.dumps(facts), flush=True)
        for runtime, (quantize, load, file) in RUNTIMES.items():
            for parts in (*((part,) for part in PARTS), INT8_PARTS, PARTS):
                quantized = quantize(case.path, Path(name) / file, calibration, parts=parts)
                found = evaluation(load(quantized.path))
                rows.append(
                    {
                        "runtime": runtime,
                        "parts": parts,
                        "int8": quantized.num_int8,
                        "float": quantized.num_float,
                        "drop": round(100 * (whole.ap - found.ap), 2),
                        "drop50": round(100 * (whole.ap50 - found.ap50), 2),
                        "matched": round(found.matched, 4),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    if not args.quick:
        content = {"environment": environment(), **facts, "rows": rows}
        (args.results / "int8_sensitivity.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
