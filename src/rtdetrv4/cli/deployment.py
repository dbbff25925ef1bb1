"""`export`, `verify` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import rtdetrv4
from rtdetrv4.cli.options import (
    Device,
    ImageSize,
    RuntimeDevice,
    Trust,
    Weights,
    given_options,
    image_size_of,
    numbers_of,
    words_of,
)
from rtdetrv4.cli.running import detector_of, interruptible
from rtdetrv4.cli.tables import print_benchmark, print_proof
from rtdetrv4.errors import ConfigError, ExportError, MissingDependencyError


def export(
    model: Annotated[str | None, typer.Argument(help="Weights (.safetensors), or a model by name.")] = None,
    trained: Annotated[str | None, typer.Option("--model", "-m", help="The same as MODEL.")] = None,
    weights: Weights = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="onnx, openvino, torchscript, pt2, executorch, tensorrt or triton; several with commas between.",
        ),
    ] = "onnx",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None,
        typer.Option("--precision", "-p", help="In what the network computes. Default: fp32."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write, the name of several without an ending, or a folder; default: beside the weights.",
        ),
    ] = None,
    imgsz: ImageSize = None,
    batch: Annotated[int | None, typer.Option(help="The only batch size to accept. Default: any.", min=1)] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.")] = None,
    postprocess: Annotated[
        bool, typer.Option("--postprocess/--raw", help="Return detections, or logits and boxes of all queries.")
    ] = True,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Detections per image. Default: 300.", min=1)] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="Take frames, B×H×W×3 uint8, instead of B×3×H×W in [0, 1].")
    ] = False,
    grid_sample: Annotated[bool, typer.Option(help="Sample with GridSample; some runtimes get it wrong.")] = True,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Return only this class; may be repeated.")
    ] = None,
    duplicates: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(help="Whether the graph drops second labels and nearly identical boxes. Default: keep."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Data set to measure the AP on; int8 needs it.")
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None, typer.Option(help="Split to measure the AP on. Default: val.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of AP that another precision than fp32 may cost. Default: 0.5.")
    ] = None,
    device: Device = None,
) -> None:
    """Export for other runtimes, and prove in each that it computes what PyTorch computes."""
    if model is not None and trained is not None:
        raise ConfigError(f'Got two models, "{model}" and --model "{trained}". Give only one.')
    if (model or trained) is None:
        raise ConfigError("Missing argument MODEL: weights (.safetensors), or a model by name.")
    from rtdetrv4.export.formats import check_format, find_formats

    formats = find_formats(format)
    for each in formats:  # before weights are read
        check_format(each, precision or "fp32", batch, grid_sample=grid_sample, opset=opset)
    given = given_options(
        precision=precision,
        out=out,
        imgsz=image_size_of(imgsz),
        batch=batch,
        opset=opset,
        num_top=top_k,
        classes=classes,
        duplicates=duplicates,
        data=data,
        split=split,
        max_drop=max_drop,
        postprocess=None if postprocess else False,
        frames=frames or None,
        grid_sample=None if grid_sample else False,
    )
    with interruptible(lambda: "The export was not finished; no file was replaced that had not passed its check."):
        written = detector_of(model or trained, weights, device).export(
            formats[0].name if len(formats) == 1 else [each.name for each in formats], **given
        )
    for path in written if isinstance(written, list) else [written]:
        print_proof(path)


def verify(
    file: Annotated[Path, typer.Argument(help="Exported file or folder, with its .report.json beside it.")],
    data: Annotated[str | None, typer.Option("--data", "-d", help="Data set to measure the AP on.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to measure the AP on.")] = "val",
    max_drop: Annotated[float, typer.Option(help="Points of AP that may be lost to PyTorch.")] = 0.5,
    device: Annotated[
        str | None, typer.Option(help="What to run it on, in the words of its runtime: cpu, gpu, …")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads that work on one image.", min=1)] = None,
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(help="What OpenVINO is to compute floats in. Default: what the file was proven in."),
    ] = None,
    trust: Trust = False,
) -> None:
    """Check on this machine that an exported file finds what PyTorch found. Needs no torch."""
    from rtdetrv4.runtime.export_report import Accuracy
    from rtdetrv4.runtime.proof import proven_precision, verify_file

    found = verify_file(file, device=device, threads=threads, precision=precision, trust=trust)
    report, share = found.report, found.matched.share
    print(f"{file} in {found.runtime}")
    if share is not None:
        print(
            f"  {100 * share:.1f} % of {found.matched.num_confident} confident detections as in PyTorch, at least "
            f"{100 * found.least_matched:g} % expected: it is the file that was exported"
        )
    print(
        f"  {found.latency.median_ms:.4g} ms per batch of {found.latency.batch}, 90 % within {found.latency.p90_ms:.4g}"
    )
    if found.elsewise is not None:
        print(
            f"  Unless told otherwise, predict and val run it in {found.elsewise}. --precision bf16 checks that; "
            "predict --precision fp32 computes as checked here."
        )
    if data is None:
        if report.precision != "fp32":
            print("  Whether it is good enough, only its AP can tell: give --data.")
        return
    with interruptible(lambda: "Nothing was changed."):
        precision = precision or proven_precision(report.precision)
        exported = rtdetrv4.ExportedDetector(file, device=device, threads=threads, precision=precision, trust=trust)
        metrics = exported.val(data, split=split)
    known = report.accuracy
    if known is None:
        print(
            f"  AP {100 * metrics.ap:.2f}; it was exported without data, so there is no AP of PyTorch to compare with"
        )
        return
    now = Accuracy(data, split, metrics.num_images, metrics.ap, metrics.ap50, known.torch_ap, known.torch_ap50)
    exported, in_torch = 100 * known.ap, 100 * known.torch_ap
    print(
        f"  AP {100 * now.ap:.2f}; when it was exported {exported:.2f}, and in PyTorch {in_torch:.2f} on {known.data}"
    )
    if now.drop > max_drop:
        raise ExportError(
            f"{file} loses {now.drop:.2f} points of AP to PyTorch on this machine, and --max-drop is {max_drop:g}. Is "
            f"{data} the same data as {known.data}?"
        )


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="Exported files and folders; .onnx and .xml files of other programs.")
    ],
    batch: Annotated[str, typer.Option(help="Images per run: 1, or several numbers: 1,8.", metavar="N,N")] = "1",
    threads: Annotated[
        str | None, typer.Option(help="Threads per run: 2, or 1,2. Default: as the runtime chooses.", metavar="N,N")
    ] = None,
    imgsz: Annotated[
        str | None,
        typer.Option(help="Sizes for models of other programs that take any: 640,480x640.", metavar="SIZE,SIZE"),
    ] = None,
    hint: Annotated[
        str, typer.Option(help="latency, throughput (several runs at once, in OpenVINO), or both.", metavar="HINT,HINT")
    ] = "latency",
    runtime: Annotated[
        str | None,
        typer.Option(help="What to run .onnx files with: onnxruntime, openvino, or both.", metavar="NAME,NAME"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="What OpenVINO computes in: fp32, bf16, or both.", metavar="NAME,NAME")
    ] = None,
    device: RuntimeDevice = None,
    seconds: Annotated[float, typer.Option(help="Time for each row of the table.")] = 3.0,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Data set to measure the AP on; else it is that of the export.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split of --data.")] = "val",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for bench.json and bench.png, AP against latency.", file_okay=False),
    ] = None,
    trust: Trust = False,
) -> None:
    """Time exported models side by side: latency and throughput, with what surrounds the network apart."""
    from rtdetrv4.benchmark import BENCHMARK_FILES, draw_benchmark, run_benchmark
    from rtdetrv4.outputs import unused_folder, write_text

    sizes = [] if imgsz is None else [image_size_of(part) for part in imgsz.split(",")]
    given = given_options(
        batches=numbers_of("--batch", batch),
        threads=None if threads is None else numbers_of("--threads", threads),
        image_sizes=[size for size in sizes if size is not None],
        hints=words_of("--hint", hint, ("latency", "throughput")),
        runtimes=None if runtime is None else words_of("--runtime", runtime, ("onnxruntime", "openvino")),
        precisions=None if precision is None else words_of("--precision", precision, ("fp32", "bf16")),
    )
    if out is not None:
        out = unused_folder(out, BENCHMARK_FILES)
    with interruptible(lambda: "Nothing was written."):
        found = run_benchmark(models, device=device, seconds=seconds, data=data, split=split, trust=trust, **given)
    if json:
        print(found.to_json(), end="")
    else:
        print_benchmark(found)
    if out is not None:
        write_text(out / BENCHMARK_FILES[0], found.to_json())
        try:
            is_drawn = draw_benchmark(found, out / BENCHMARK_FILES[1])
            missing = "" if is_drawn else ", without a picture, because no AP is known"
        except MissingDependencyError as error:
            missing = f", without a picture: {error}"
        if not json:
            print(f"Results: {out}{missing}")
