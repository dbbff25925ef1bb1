"""The paper's table and its ablations on COCO, and RF100-VL, as one command per row.

    python benchmarks/reproduce/reproduce.py list
    python benchmarks/reproduce/reproduce.py check --coco COCO
    python benchmarks/reproduce/reproduce.py plan s --coco COCO --gpus 4
    python benchmarks/reproduce/reproduce.py run s --coco COCO
    python benchmarks/reproduce/reproduce.py compare

README.md beside this file explains each. The same `run` resumes what was stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from coco import LICENSE, PARTS, check, how_to_get, require_layout
from needs import Cost, cost_on_coco, cost_on_rf100vl, downloads
from results import write_results
from rf100vl import HOW_TO_GET, DataSet, find_sets, read_domains
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rows import ROWS, find_row, recipe_of, settings_of, teacher_of
from runs import check_changes, fetch, leads, run_coco, run_rf100vl
from tiny import COCO_PARTS, write_tiny_coco, write_tiny_rf100vl

from rtdetrv4.assembly.fitting import words
from rtdetrv4.config import Recipe, given_settings, parse_assignment
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.errors import ConfigError, RTDETRError

EXIT_INCOMPLETE, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130
NUM_DRAWN, DRAWN_SIDE = 64, 640


def show_rows() -> None:
    """Print all rows, and where the published numbers come from."""
    table = Table(box=None, pad_edge=False)
    for name in ("row", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("epochs", "batch", "AP"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what")
    sources = list(dict.fromkeys(row.source for row in ROWS.values() if row.source))
    for row in ROWS.values():
        schedule = recipe_of(row).schedule
        length = (str(schedule.epochs), str(schedule.batch)) if row.data == "coco" else ("fits", "fits")
        mark = f" [{sources.index(row.source) + 1}]" if row.source else ""
        published = "" if row.published is None else f"{row.published:.1f}{mark}"
        table.add_row(row.name, row.model, *length, Text(published), row.what)
    Console().print(table)
    print("\nAP: published, in percent; none of it was measured here. No number: none is known here.")
    for number, source in enumerate(sources, start=1):
        print(f"[{number}] {source}")


def check_data(args: argparse.Namespace) -> int:
    """Check COCO, or the folders of RF100-VL."""
    if args.tiny:
        args.coco = write_tiny_coco(args.out / "coco")
    if args.rf100vl is not None:
        return _check_rf100vl(args)
    if args.coco is None:
        print(how_to_get(Path("coco")))
        return 0
    try:
        require_layout(args.coco)
    except ConfigError:
        print(how_to_get(args.coco))
        raise
    what = {"parts": COCO_PARTS, "classes": None} if args.tiny else {}
    num_bad = 0
    for finding in check(args.coco, md5=args.md5, **what):
        print(f"{'ok ' if finding.is_good else 'BAD'} {finding.text}", flush=True)
        num_bad += not finding.is_good
    return EXIT_INCOMPLETE if num_bad else 0


def _check_rf100vl(args: argparse.Namespace) -> int:
    num_bad = 0
    sets = _sets(args)
    for each in sets:
        try:
            splits = read_splits(each.path)
        except RTDETRError as error:
            print(f"BAD {each.name}: {error}")
            num_bad += 1
            continue
        counts = ", ".join(f"{name} {len(part.records)}" for name, part in splits.parts.items())
        print(f"ok  {each.name}{'' if each.domain is None else f' ({each.domain})'}: {counts}", flush=True)
    print(f"{len(sets)} data sets")
    return EXIT_INCOMPLETE if num_bad else 0


def plan(args: argparse.Namespace) -> None:
    """Print what a row fetches, and its hours and memory from a few measured steps."""
    for name in args.rows:
        row = find_row(name)
        teacher = args.teacher
        recipe = recipe_of(row, teacher=teacher, tiny=args.tiny)
        print(f"{row.name}: {row.model}, {row.what}")
        if row.note:
            print(f"  {row.note}")
        if not args.tiny:
            for each in downloads(row, teacher):
                here = "on this machine" if each.is_here else "to be fetched"
                terms = "; ".join(filter(None, (each.license, each.note)))
                print(f"  {each.what}: {each.source} ({terms}), {here}")
            if (of_row := teacher_of(row, teacher)) is not None and teacher is None:
                print(f"  Instead of {of_row}: --teacher dinov2-b (Apache-2.0)")
        if row.data == "rf100vl":
            sets = _sets(args)
            settled = given_settings(settings_of(row, teacher=teacher, tiny=args.tiny))
            cost = cost_on_rf100vl(recipe, settled, "none" if args.tiny else row.start, sets)
            print(f"  data: {len(sets)} data sets")
        else:
            cost = _coco_cost(args, recipe)
        _show_cost(cost)


def _coco_cost(args: argparse.Namespace, recipe: Recipe) -> Cost:
    gpus = args.gpus or max(torch.cuda.device_count(), 1)
    if args.coco is not None or args.tiny:
        splits = read_splits(_coco(args), parts=("train", "val"))
        assert splits.train is not None, "the layout was checked"
        assert splits.val is not None, "the layout was checked"
        counts = len(splits.train.records), len(splits.val.records)
        print(f"  data: {args.coco} ({LICENSE})" if not args.tiny else "  data: a tiny set")
        return cost_on_coco(recipe, splits, counts, gpus)
    print(f"  data: COCO is to be downloaded ({LICENSE}); measured on drawn images instead")
    with tempfile.TemporaryDirectory() as place:
        splits = read_splits(write_shapes(place, NUM_DRAWN, NUM_DRAWN // 4, DRAWN_SIDE))
        return cost_on_coco(recipe, splits, (PARTS["train"].images, PARTS["val"].images), gpus)


def _show_cost(cost: Cost) -> None:
    of = f" of {cost.num_gpus}" if cost.num_gpus > 1 else ""
    parts = "" if cost.parts == 1 else f" in {cost.parts} parts"
    print(f"  measured: {cost.device}, as one{of}: {cost.images} images a step{parts}, {cost.pace.step:.3g} s a step")
    peak = "" if cost.peak is None else f"; {cost.peak / 1e9:.1f} GB were in use at the base size"
    print(
        f"  memory: about {cost.memory / 1e9:.1f} GB free on each, {cost.bytes_per_image / 1e6:.0f} MB per image at "
        f"the largest size{peak}"
    )
    print(
        f"  time: about {words(cost.seconds)} for {cost.steps} steps with {cost.num_gpus} device"
        f"{'s' if cost.num_gpus > 1 else ''}, evaluation included"
        + (", exchange of gradients not" if cost.num_gpus > 1 else "")
    )


def run(args: argparse.Namespace) -> int:
    """Train and evaluate rows, or go on with them."""
    rows = [find_row(name) for name in args.rows]
    changes = dict(parse_assignment(text) for text in args.set or ())
    check_changes(changes)
    share = _share(args.share)
    common = {"seed": args.seed, "teacher": args.teacher, "tiny": args.tiny, "changes": changes}
    for row in rows:  # wrong names and data are known before the first of them trains
        settings_of(row, teacher=args.teacher)
        _ = _coco(args) if row.data == "coco" else _sets(args)
    failed: list[str] = []
    for row in rows:
        if row.data == "coco":
            file = run_coco(row, _coco(args), args.out, **common)
            if leads():
                print(f"Result: {file}")
        else:
            failed += run_rf100vl(row, _sets(args), args.out, share=share, **common)
    for each in failed:
        print(f"failed: {each}", file=sys.stderr)
    return EXIT_INCOMPLETE if failed else 0


def compare(args: argparse.Namespace) -> None:
    """Print and write the finished rows beside the published numbers."""
    comparison, tables = write_results(args.out)
    console = Console()
    if comparison.is_tiny:
        print("A dry run: tiny images and a few steps. The numbers mean nothing.\n")
    for each in tables:
        table = Table(title=each.title, caption=each.note or None, box=None, pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        for index, name in enumerate(each.header):
            table.add_column(name, justify="right" if index else "left", no_wrap=index > 0)
        for cells in each.rows:
            table.add_row(*map(Text, cells))
        console.print(table)
        print()
    for each in comparison.unfinished:
        print(f"Unfinished: {each}")
    print(f"Written: {args.out / 'compare.md'} and compare.json")


def _coco(args: argparse.Namespace) -> Path:
    """The folder of COCO, laid out as it should be."""
    if args.tiny:
        return write_tiny_coco(args.out / "coco")
    if args.coco is None:
        raise ConfigError("Missing option --coco: the folder of COCO 2017. `check` says how to get it.")
    require_layout(args.coco)
    return args.coco


def _sets(args: argparse.Namespace) -> list[DataSet]:
    """The data sets of RF100-VL."""
    if args.tiny:
        return find_sets(write_tiny_rf100vl(args.out / "rf100vl"))
    if args.rf100vl is None:
        raise ConfigError(f"Missing option --rf100vl: the folder of the data sets. {HOW_TO_GET}")
    return find_sets(args.rf100vl, None if args.domains is None else read_domains(args.domains))


def _share(text: str) -> tuple[int, int]:
    """`"2/4"` → (2, 4)."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise ConfigError(f'--share: got "{text}", expected I/N such as 2/4, for the second of four processes.')
    return int(number), int(total)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rows = argparse.ArgumentParser(add_help=False)
    rows.add_argument("rows", nargs="+", metavar="ROW", help="rows, as `list` names them")
    teacher = argparse.ArgumentParser(add_help=False)
    teacher.add_argument("--teacher", help="instead of the row's: dinov2-b is under Apache 2.0")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--coco", type=Path, metavar="DIR", help="COCO 2017: train2017/, val2017/, annotations/")
    data.add_argument("--rf100vl", type=Path, metavar="DIR", help="RF100-VL: DIR/SET/ or DIR/DOMAIN/SET/")
    data.add_argument(
        "--domains", type=Path, metavar="FILE", help='JSON for folders without domains: {"SET": "DOMAIN"}'
    )
    data.add_argument("--tiny", action="store_true", help="dry run on a tiny set that is drawn; downloads nothing")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=Path, help="folder for all runs (default: runs/reproduce, or runs/reproduce-tiny)")

    commands.add_parser("list", help="all rows")
    checking = commands.add_parser("check", parents=[data, out], help="is the data complete? how is it downloaded?")
    checking.add_argument("--md5", action="store_true", help="checksums of the archives that are still there")
    planning = commands.add_parser(
        "plan", parents=[rows, teacher, data, out], help="downloads, licenses, hours, memory"
    )
    planning.add_argument("--gpus", type=int, help="that will share the batch (default: those of this machine)")
    commands.add_parser("fetch", parents=[rows, teacher], help="fetch the weights of backbone and teacher")
    running = commands.add_parser("run", parents=[rows, teacher, data, out], help="train and evaluate, or go on")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--share", default="1/1", metavar="I/N", help="of RF100-VL's sets, for one process per GPU")
    running.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="a setting that changes no result: data.workers=16"
    )
    comparing = commands.add_parser("compare", parents=[out], help="finished rows beside the published numbers")
    comparing.add_argument("--tiny", action="store_true", help="of the dry runs")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    args = _parser().parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("rtdetrv4").setLevel(logging.INFO)
    logging.getLogger("runs").setLevel(logging.INFO if leads() else logging.WARNING)
    if "out" in args and args.out is None:
        args.out = Path("runs/reproduce-tiny" if args.tiny else "runs/reproduce")
    try:
        if args.command == "list":
            show_rows()
        elif args.command == "check":
            return check_data(args)
        elif args.command == "plan":
            plan(args)
        elif args.command == "fetch":
            for name in args.rows:
                for path in fetch(find_row(name), args.teacher):
                    print(path)
        elif args.command == "run":
            return run(args)
        else:
            compare(args)
    except RTDETRError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt as stop:
        print(f"interrupted. {stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
