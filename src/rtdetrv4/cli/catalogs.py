"""What there is to choose from: `models` and `teachers`, which can be probed; `convert` for weights of elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from rtdetrv4.cli.options import Device, Trust, device_of, given_options, image_size_of
from rtdetrv4.cli.running import interruptible
from rtdetrv4.errors import ConfigError

WIDE = 132
"""Columns of a terminal from which on tables show all that there is."""


def models(
    name: Annotated[str | None, typer.Argument(help="Print this model's recipe instead.")] = None,
) -> None:
    """List the models, or print a model's recipe as YAML."""
    from rtdetrv4.config import VARIANTS, load_recipe, to_yaml

    if name is not None:
        print(to_yaml(load_recipe(name)), end="")
        return

    from rich.console import Console
    from rich.table import Table

    from rtdetrv4.weights.catalog import HUB_FILES, Dataset

    table = Table(
        title="Models",
        box=None,
        pad_edge=False,
        caption="coco, obj2coco, obj365: weights that can be fetched by name, with their AP on COCO val2017 as "
        "published for that file (✓: none was). ms: latency as published, on a T4 with TensorRT FP16. Nothing here was "
        "measured by us.",
        caption_justify="left",
    )
    table.add_column("model", style="bold", no_wrap=True)
    table.add_column("backbone", no_wrap=True)
    for column in ("params", "ms", *get_args(Dataset)):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("license", no_wrap=True)
    for name, variant in VARIANTS.items():
        if variant.num_parameters is None:  # the model for tests
            continue
        first = {dataset: files[0] for dataset, files in HUB_FILES.get(name, {}).items()}
        table.add_row(
            name,
            variant.backbone,
            f"{variant.num_parameters / 1e6:.1f} M",
            "" if variant.latency_ms is None else f"{variant.latency_ms:.2f}",
            *(
                "" if dataset not in first else "✓" if first[dataset].ap is None else f"{first[dataset].ap:.1f}"
                for dataset in get_args(Dataset)
            ),
            ", ".join(sorted({file.license or "unknown" for file in first.values()})),
        )
    Console().print(table)


def teachers(
    probe: Annotated[
        str | None,
        typer.Option(help="Data set on which to measure how well the teachers of --of separate its objects."),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help="What to probe: teachers as for train, NAME@BLOCK for an earlier block, random:NAME for random "
            "weights, files of detectors' weights.",
            metavar="NAME,NAME",
        ),
    ] = None,
    imgsz: Annotated[
        str | None,
        typer.Option(
            "--imgsz", "--size", help="Image size of the detector that would learn: 640, or HEIGHTxWIDTH. Default: 640."
        ),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--images", help="Training images to look at. Default: 300.", min=5)
    ] = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the choice of images and boxes.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for probe.json, probe.txt and probe.png.", file_okay=False),
    ] = None,
) -> None:
    """List the named teachers and their licenses, or probe some on your data. Any other timm model works too."""
    if probe is None:
        if json or any(given is not None for given in (of, imgsz, num_images, device, seed, out)):
            raise ConfigError("These options belong to a probe: give a data set, --probe DATA.")
        _list_teachers()
        return
    names = [name.strip() for name in (of or "").split(",") if name.strip()]
    if not names:
        raise ConfigError("Missing option --of: teachers with commas between, such as dinov2-s,siglip2-b.")
    given = given_options(imgsz=image_size_of(imgsz), num_images=num_images, device=device_of(device), seed=seed)
    from rtdetrv4.probing import probe_teachers

    with interruptible(lambda: "Nothing was written."):
        found = probe_teachers(probe, names, **given)
    print(found.to_json() if json else found, end="" if json else "\n")
    if out is not None:
        folder = found.save(out)
        if not json:
            print(f"Results: {folder}")


def _list_teachers() -> None:
    from rich.console import Console
    from rich.table import Table

    from rtdetrv4.distillation.teacher_catalog import TEACHERS

    console = Console()
    is_wide = console.width >= WIDE
    table = Table(
        title="Teachers",
        box=None,
        pad_edge=False,
        caption="* not an open-source license: read it before you train. Licenses are those that timm states. Any "
        "other timm model can be a teacher too, by its timm name.",
        caption_justify="left",
    )
    table.add_column("teacher", style="bold", no_wrap=True)
    for column in ("params", "dim", "stride"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("license", no_wrap=True)
    if is_wide:
        table.add_column("name in timm", no_wrap=True)
    family, names_of = TEACHERS[0].family, dict[str, list[str]]()
    for facts in TEACHERS:
        if facts.family != family:
            table.add_section()
            family = facts.family
        terms = facts.license if facts.is_open else f"{facts.license} *"
        cells = (facts.name, f"{facts.millions:g} M", str(facts.dim), str(facts.stride), terms)
        table.add_row(*cells, *([facts.timm_name] if is_wide else []))
        names_of.setdefault(facts.note, []).append(facts.name)
    console.print(table)
    for note, names in names_of.items():
        if note:
            console.print(f"\n[bold]{', '.join(names)}[/]: {note}", highlight=False)
    if not is_wide:
        console.print(f"\nFrom {WIDE} columns on, a terminal shows the names in timm, too.", highlight=False)


def convert(
    source: Annotated[str, typer.Argument(help="A released .pth, a transformers folder, or weights of this package.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, or folder for transformers.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model, if the tensors fit several.")] = None,
    to: Annotated[Literal["ours", "released", "transformers"], typer.Option(help="Format to write.")] = "ours",
    trust: Trust = False,
) -> None:
    """Convert weights to this package's format, the released code's, or transformers'."""
    from rtdetrv4.assembly.conversion import convert_weights

    found = convert_weights(source, out, model=model, to=to, trust=trust)
    print(f"{found.model} with {found.num_classes} classes: {out}")
