"""Exported models against transformers' models of the same size, on a CPU.

    python benchmarks/deploy_latency.py

RT-DETRv4-S, -M and -L against transformers' D-FINE of the same size, and our RT-DETRv2-R18 against transformers', at
640×640 and batch 1, in float32, in ONNX Runtime and in OpenVINO with two threads. Both sides return logits and boxes of
all queries, and go through torch.onnx.export with dynamo, as users export them; ours is then simplified as
`rtdetrv4 export` does. Weights are random and both sides have the same number of them; the affine activations of
HGNetV2, which start as the identity, are made irregular, as trained ones are.

transformers' D-FINE needs one translation that the exporter lacks, that of a check on shapes, which does not remain in
the graph.

Each side has its own process, and they work in turn; a turn is five inferences, and its time is divided by five. Also
recorded: the number of operators by kind after ONNX Runtime has optimized the graph, and their shares of the time.

Expected: 15 to 20 minutes on two cores, most of them for exporting; --files keeps what is exported for the next time.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from _measure import Results, Side, arguments, in_turn, serve
from onnxscript import opset18
from torch import Tensor, nn
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from rtdetrv4 import create_model
from rtdetrv4.export.graph import pad_in_pools
from rtdetrv4.models import fuse

TARGET = 0.8
THREADS = 2
OPSET = 18
INFERENCES = 5
MODELS = ("rtdetrv4-s", "rtdetrv4-m", "rtdetrv4-l", "rtdetrv2-r18")
RUNTIMES = ("onnxruntime", "openvino")
SIDES = ("ours", "transformers")

# D-FINE as published: backbone, and the dimensions that differ between sizes.
STAGES = {
    "s": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 64, 256, 512],
        "stage_mid_channels": [16, 32, 64, 128],
        "stage_out_channels": [64, 256, 512, 1024],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [3, 3, 3, 3],
    },
    "m": {
        "stem_channels": [3, 24, 32],
        "stage_in_channels": [32, 96, 384, 768],
        "stage_mid_channels": [32, 64, 128, 256],
        "stage_out_channels": [96, 384, 768, 1536],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [4, 4, 4, 4],
    },
    "l": {
        "stem_channels": [3, 32, 48],
        "stage_in_channels": [48, 128, 512, 1024],
        "stage_mid_channels": [48, 96, 192, 384],
        "stage_out_channels": [128, 512, 1024, 2048],
        "stage_num_blocks": [1, 1, 3, 1],
        "stage_numb_of_layers": [6, 6, 6, 6],
    },
}
DIMENSIONS = {
    "s": {"depth_mult": 0.34, "hidden_expansion": 0.5, "decoder_layers": 3},
    "m": {"depth_mult": 0.67, "hidden_expansion": 1.0, "decoder_layers": 4},
    "l": {"depth_mult": 1.0, "hidden_expansion": 1.0, "decoder_layers": 6},
}


def their_dfine(size: str) -> nn.Module:
    """Build D-FINE of a size, from transformers' own code."""
    stages = STAGES[size]
    outputs = stages["stage_out_channels"]
    backbone = HGNetV2Config(
        hidden_sizes=outputs,  # D-FINE reads the channels of the pyramid here
        use_learnable_affine_block=size != "l",
        out_features=["stage2", "stage3", "stage4"],
        **stages,
    )
    config = DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=outputs[1:],
        decoder_n_points=[3, 6, 3],
        num_labels=80,
        **DIMENSIONS[size],
    )
    return DFineForObjectDetection(config)


def their_rtdetrv2() -> nn.Module:
    """Build RT-DETRv2-R18 from transformers' own code."""
    backbone = RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        hidden_act="relu",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        num_labels=80,
    )
    return RTDetrV2ForObjectDetection(config)


class Outputs(nn.Module):
    """Returns the logits and boxes of either side."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images B×3×H×W → B×Q×K and B×Q×4."""
        output: Any = self.model(images)
        return output.logits, output.boxes if hasattr(output, "boxes") else output.pred_boxes


def all_true(x: Any) -> Any:
    """aten::_is_all_true as ONNX."""
    return opset18.Cast(opset18.ReduceMin(opset18.Cast(x, to=onnx.TensorProto.INT32), keepdims=0), to=9)


def export(side: str, name: str, size: int, path: Path) -> int:
    """Write a model as ONNX, and return the number of its parameters before it was fused."""
    torch.manual_seed(0)
    kind = name.rpartition("-")[2]
    model = create_model(name) if side == "ours" else their_rtdetrv2() if kind == "r18" else their_dfine(kind)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".lab." in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    module = Outputs(fuse(model) if side == "ours" else model).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (torch.zeros(1, 3, size, size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "boxes"],
            custom_translation_table={torch.ops.aten._is_all_true.default: all_true},
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    if side == "ours":
        graph = onnxslim.slim(graph)
        pad_in_pools(graph)
    onnx.save(graph, path)
    return count


def in_onnxruntime(path: Path, images: np.ndarray) -> Callable[[], object]:
    """Load a file, and return a function that runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def in_openvino(path: Path, images: np.ndarray) -> Callable[[], object]:
    """Load a file, and return a function that runs it; in float32 also where the processor has bfloat16."""
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    return lambda: request.infer({"images": images})


def operators(path: Path, images: np.ndarray, repeats: int) -> dict[str, list[float]]:
    """The operators of a graph that ONNX Runtime has optimized: how many of each kind, and their share of the time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text())
    seconds: Counter[str] = Counter()
    names: dict[str, set[str]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            seconds[kind] += event["dur"]
            names.setdefault(kind, set()).add(event["name"])
    total = sum(seconds.values())
    return {kind: [len(names[kind]), round(time / total, 4)] for kind, time in seconds.most_common(12)}


def work_for(path: Path, runtime: str, size: int) -> None:
    """Run as one of the sides."""
    images = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    run = in_onnxruntime(path, images) if runtime == "onnxruntime" else in_openvino(path, images)

    def turn() -> None:
        for _ in range(INFERENCES):
            run()

    turn()
    serve(turn, {"operators": operators(path, images, INFERENCES) if runtime == "onnxruntime" else None})


def main() -> None:
    """Compare every model in both runtimes."""
    parser = arguments(__doc__, repeats=15)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--files", type=Path, help="folder for the exported files; those that are there are used")
    parser.add_argument("--serve", type=Path, help="be the side that has this file")
    args = parser.parse_args()
    if args.serve:
        work_for(args.serve, args.runtimes[0], args.size)
        return
    models, size, repeats = (MODELS[:1], 128, 1) if args.quick else (args.models, args.size, args.repeats)
    results = Results("deploy_latency", args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in models:
            paths = {side: folder / f"{name}-{size}-{side}.onnx" for side in SIDES}
            counts = {side: export(side, name, size, path) for side, path in paths.items() if not path.exists()}
            assert len(set(counts.values())) <= 1, f"not the same network: {counts}"
            for runtime in args.runtimes:
                words = ["--runtimes", runtime, "--size", str(size)]
                running = {
                    side: Side([str(Path(__file__)), "--serve", str(path), *words]) for side, path in paths.items()
                }
                turns = in_turn(running, repeats)
                own, other = (
                    turn._replace(**{key: getattr(turn, key) / INFERENCES for key in ("median", "least", "most")})
                    for turn in turns.values()
                )
                title = f"{name}, {runtime} float32"
                results.add(title, own.median / other.median, TARGET, ours_s=own, transformers_s=other)
                for side, each in running.items():
                    if each.facts["operators"]:
                        results.note(**{f"{name}, {side}, operators and their share": each.facts["operators"]})
                    each.close()
    results.save()


if __name__ == "__main__":
    main()
