"""What smaller numbers gain and cost: float32, float16, bfloat16, 8 bits, and 8 bits for the weights alone.

    python benchmarks/int8.py best.onnx --data my_data

The same network in ONNX Runtime and OpenVINO, each in a process of its own with two threads, one image at a time, in
turn. Accuracy is that of the validation images; *matched* is the share of confident detections that the float32 file
has too, and vice versa. Without a model and data, a network with random weights is timed, whose accuracy means nothing.

bfloat16 and float16 in OpenVINO are hints: where the processor has no instructions for them, it computes in float32.

Needs NNCF, for comparison: pip install nncf. Expected: 10 minutes on two cores.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _deployed import Evaluation, Run, case_of, onnx_run, openvino_run
from _measure import Results, Side, arguments, in_turn, serve

from rtdetrv4.export.calibration import CalibrationImages
from rtdetrv4.export.half import half_onnx
from rtdetrv4.export.int8 import INT8_PARTS, quantize_onnx, quantize_openvino
from rtdetrv4.export.parts import openvino_graph, parts_of

THREADS = 2
MAX_DROP = 0.5
INSTRUCTIONS = ("avx2", "avx512f", "avx512_fp16", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_bf16", "amx_int8")


class Way(NamedTuple):
    """A way to run a network."""

    runtime: str
    file: str
    precision: str = "f32"
    """What OpenVINO may compute floats in."""
    target: float | None = None
    """The time it may take, relative to float32 in the same runtime."""
    max_drop: float = MAX_DROP

    def run(self, folder: Path) -> Run:
        """Load the file."""
        path = folder / self.file
        return onnx_run(path, THREADS) if self.runtime == "onnx" else openvino_run(path, self.precision, THREADS)


WAYS = {
    "ONNX Runtime, float32": Way("onnx", "float.onnx"),
    "ONNX Runtime, float16": Way("onnx", "half.onnx"),
    "ONNX Runtime, int8": Way("onnx", "int8.onnx", target=0.7),
    "ONNX Runtime, int8 weights of matrix products": Way("onnx", "weights.onnx"),
    "OpenVINO, float32": Way("openvino", "float.onnx"),
    "OpenVINO, float16 hint": Way("openvino", "float.onnx", "f16"),
    "OpenVINO, bfloat16 hint": Way("openvino", "float.onnx", "bf16", target=0.42, max_drop=0.2),
    "OpenVINO, int8": Way("openvino", "int8.xml", target=0.45),
    "OpenVINO, int8, rest bfloat16": Way("openvino", "int8.xml", "bf16", target=0.45),
    "OpenVINO, int8 by NNCF": Way("openvino", "nncf.xml"),
    "OpenVINO, int8 by NNCF, rest bfloat16": Way("openvino", "nncf.xml", "bf16"),
    "OpenVINO, int8 weights": Way("openvino", "weights.xml"),
}
REFERENCES = {"onnx": "ONNX Runtime, float32", "openvino": "OpenVINO, float32"}


def main() -> None:
    """Make the files, evaluate and time them."""
    parser = arguments(__doc__, repeats=60)
    parser.add_argument("model", nargs="?", type=Path, help="float32 file of Detector.export; default: random weights")
    parser.add_argument("--data", type=Path, help="data set with the classes of the model")
    parser.add_argument("--val-data", type=Path, help="evaluate on the validation part of this data set instead")
    parser.add_argument("--images", type=int, default=300, help="calibration images (default: %(default)s)")
    parser.add_argument("--name", default="", help="what to call the model in the results")
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "FOLDER"), help="used by the script itself")
    args = parser.parse_args()
    if args.serve:
        serve_way(WAYS[args.serve[0]], Path(args.serve[1]))
        return
    results = Results("int8", args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = case_of(args.model, args.data, folder, quick=args.quick, val_data=args.val_data)
        metadata = case.metadata
        calibration = CalibrationImages(case.train, metadata.image_size, metadata.resize, args.images)
        make_files(case.path, folder, calibration)
        evaluation = Evaluation(case.val, metadata.image_size, metadata.resize)
        reference = WAYS[REFERENCES["onnx"]].run(folder)
        evaluation.refer_to(reference)
        found = {title: evaluation(way.run(folder)) for title, way in WAYS.items()}
        np.save(folder / "image.npy", evaluation.inputs[0])
        sides = {title: Side([__file__, "--serve", title, name]) for title in WAYS}
        try:
            times = in_turn(sides, 1 if args.quick else args.repeats, warmup=1 if args.quick else 10)
        finally:
            for side in sides.values():
                side.close()
        results.note(
            model=f"{args.name or metadata.model}, {metadata.image_size[0]}×{metadata.image_size[1]} px",
            processor=instructions(),
            calibration_images=len(calibration),
            val_images=len(evaluation.inputs),
            ways={
                title: {
                    **found[title]._asdict(),
                    "drop": round(100 * (found[REFERENCES[way.runtime]].ap - found[title].ap), 2),
                    "ms": round(1000 * times[title].median, 2),
                    "ratio": round(times[title].median / times[REFERENCES[way.runtime]].median, 3),
                    "mib": round(size_of(folder / way.file), 1),
                }
                for title, way in WAYS.items()
            },
        )
        for title, way in WAYS.items():
            if way.target is not None:
                base = times[REFERENCES[way.runtime]]
                results.add(
                    f"{args.name or metadata.model}, {title}, time",
                    times[title].median / base.median,
                    way.target,
                    this=times[title],
                    float32=base,
                )
                if args.model:
                    drop = 100 * (found[REFERENCES[way.runtime]].ap - found[title].ap)
                    results.add(f"{args.name or metadata.model}, {title}, points of AP lost", drop, way.max_drop)
    results.save()


def make_files(source: Path, folder: Path, calibration: CalibrationImages) -> None:
    """Write the files of all ways."""
    import nncf
    import onnx
    import openvino
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.WARNING)  # both packages tell of every operator
    (folder / "float.onnx").write_bytes(source.read_bytes())
    half_onnx(source, folder / "half.onnx")
    quantize_onnx(source, folder / "int8.onnx", calibration)
    quantize_openvino(source, folder / "int8.xml", calibration)
    products = MatMulNBitsQuantizer(onnx.load(source), bits=8, block_size=32, is_symmetric=True)
    products.process()
    onnx.save(products.model.model, folder / "weights.onnx")
    quantize_with_nncf(source, folder / "nncf.xml", calibration)
    compressed = nncf.compress_weights(openvino.convert_model(source), mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, folder / "weights.xml", compress_to_fp16=False)


def quantize_with_nncf(source: Path, target: Path, calibration: CalibrationImages) -> None:
    """Quantize the same parts with NNCF, in the way that loses least with it."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # Reading alone leaves activations in pieces, between which NNCF would round.
    model = openvino.convert_model(source)
    part_of = parts_of(openvino_graph(model))
    result = nncf.quantize(
        model,
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(
            names=[name for name, part in part_of.items() if part not in INT8_PARTS], validate=False
        ),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            weights_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        ),
    )
    openvino.save_model(result, target, compress_to_fp16=False)


def serve_way(way: Way, folder: Path) -> None:
    """Run one image again and again, in a process of its own."""
    run, image = way.run(folder), np.load(folder / "image.npy")
    serve(lambda: run(image), {})


def size_of(path: Path) -> float:
    """The size of a file in MiB, with the weights beside it."""
    files = [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in files) / 2**20


def instructions() -> str:
    """The instructions of this processor that matter here."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return " ".join(name for name in INSTRUCTIONS if name in flags) or "unknown"


if __name__ == "__main__":
    main()
