"""What is fuzzed: for each surface, valid input, ways to damage it, and how it is read."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import json
import os
import random
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 1.5, 2**31, 2**63, 10**30, float("nan"), float("inf"), 1e300, 1e-300),
    *("", "x", "1", "../x", "/etc/passwd", "\ud800", "\0", "a" * 3000, [], {}, [[]], [1, 2, 3, 4], [10**9, 10**9]),
    *({"id": 1}, [None], ["a", "a"], "hf-hub:a/b", "é", "\n", "${x}", "{0.__class__}", "__import__('os')"),
]
WORDS = [
    "",
    "-1",
    "0",
    "nan",
    "inf",
    "1e400",
    "9" * 400,
    "0x10",
    "#",
    "\x00",
    "é",
    "[",
    "{",
    ": :",
    "<",
    "&",
    "*a",
    "!!x",
]
NUMBERS = [0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1]


def damaged(data: bytes, choose: random.Random, most: int = 8) -> bytes:
    """Bytes with a few of them changed, cut out, repeated or replaced by a special number."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, most)):
        if not changed:
            return b"x"
        at, how = choose.randrange(len(changed)), choose.random()
        if how < 0.4:
            changed[at] = choose.choice((0, 255, changed[at] ^ (1 << choose.randrange(8)), choose.randrange(256)))
        elif how < 0.6:
            kind = choose.choice(("<I", ">I", "<H", ">H", "<Q"))
            special = struct.pack(kind, choose.choice(NUMBERS) % (1 << 8 * struct.calcsize(kind)))
            changed[at : at + len(special)] = special
        elif how < 0.75:
            del changed[at : at + choose.choice((1, 4, 100, len(changed)))]
        else:
            to = choose.randrange(len(changed))
            changed[to:to] = changed[at : at + choose.choice((1, 4, 100))]
    return bytes(changed)


def changed_values(content: Any, choose: random.Random) -> Any:
    """A nested value with a few entries deleted or replaced."""
    content = copy.deepcopy(content)
    for _ in range(choose.randint(1, 3)):
        if places := _places(content):
            container, key = choose.choice(places)
            if choose.random() < 0.3 and isinstance(container, dict):
                del container[key]
            else:
                container[key] = copy.deepcopy(choose.choice(VALUES))
    return content


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in items for place in ((value, key), *_places(each))]


def changed_text(text: str, choose: random.Random) -> bytes:
    """Text with bytes, words or lines changed."""
    how = choose.random()
    if how < 0.35:
        return damaged(text.encode(), choose)
    lines = text.split("\n")
    at = choose.randrange(len(lines))
    if how < 0.5:
        lines[at : at + 1] = choose.choice(([], [lines[at]] * 2, lines[::-1], ["\ufeff", ""], [lines[at]] * 1000))
    else:
        words = lines[at].split(" ")
        words[choose.randrange(len(words))] = choose.choice(WORDS)
        lines[at] = " ".join(words)
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


class Surface(Protocol):
    """Something that reads what strangers made."""

    def attempt(self, choose: random.Random) -> str:
        """Try one input, and say in a word how it ended; errors of this package are taken for refusals."""
        ...


class Annotations:
    """A data set in one format, of which one file is damaged."""

    def __init__(self, folder: Path, files: Callable[[], dict[str, str]]) -> None:
        from rtdetrv4.data.formats import read_splits

        self._read, self._folder, self._files = read_splits, folder, files()
        for shade, stem in enumerate("abc"):
            Image.new("RGB", (80, 40), (90 * shade, 60, 120)).save(folder / f"{stem}.jpg")
        for name, text in self._files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        name = choose.choice(sorted(self._files))
        text = self._files[name]
        if name.endswith(".json") and choose.random() < 0.6:
            content = json.dumps(changed_values(json.loads(text), choose)).encode()
        else:
            content = changed_text(text, choose)
        (self._folder / name).write_bytes(content)
        try:
            self._read(self._folder)
        finally:
            (self._folder / name).write_text(text, encoding="utf-8")
        return "read"


class Recipes:
    """A recipe with other settings and damaged text."""

    def __init__(self, folder: Path) -> None:
        from rtdetrv4.config import load_recipe, to_yaml
        from rtdetrv4.config.recipe import flat_settings

        self._load, self._path = load_recipe, folder / "recipe.yaml"
        recipe = load_recipe("test")
        self._whole, self._settings = to_yaml(recipe), list(flat_settings(recipe).items())

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        how = choose.random()
        if how < 0.5:
            self._path.write_bytes(changed_text(self._whole, choose))
        else:
            some = dict(choose.sample(self._settings, choose.randint(1, 6)))
            some |= {choose.choice(list(some)): choose.choice(VALUES)}
            some |= {"extends": choose.choice(("test", "rtdetrv4-s", "recipe.yaml", "../x", "/etc/passwd", ""))}
            self._path.write_text(json.dumps(some))
        self._load(str(self._path))
        return "read"


class CommandLines:
    """Commands with made-up options and values, none of which has a model or a data set to work with."""

    def __init__(self, folder: Path) -> None:
        import typer

        from rtdetrv4.cli import app, main

        for module in ("accelerate", "assembly", "comparison", "doctor", "serving.server", "training", "benchmark"):
            importlib.import_module(module if module == "accelerate" else f"rtdetrv4.{module}")  # that no attempt waits
        self._main = main
        group: Any = typer.main.get_command(app)
        self._commands = {
            name: [text for each in command.params for text in each.opts if text.startswith("-")]
            for name, command in group.commands.items()
            if name not in ("demo",)
        }
        self._values = [
            "",
            "x",
            "0",
            "-1",
            "1",
            "nan",
            "1e400",
            "640",
            "0x0",
            "a=b",
            "a.b=1",
            "cpu",
            "=",
            "\0",
            "é",
            "1,2",
        ]
        self._values += [
            "x.onnx",
            "x.pt",
            "x.yaml",
            ".",
            "..",
            "auto",
            "none",
            "best",
            "[",
            "{",
            "9" * 400,
            "-",
            "--",
            "*",
        ]
        self._values += ["run.epochs=1e9", "model.name=x", "0,0 1,1", "rtsp://u:p@[", "http://[", "mqtt://", "../x"]

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        name = choose.choice(sorted(self._commands))
        arguments = [name]
        for _ in range(choose.randint(0, 6)):
            if choose.random() < 0.7 and self._commands[name]:
                arguments.append(choose.choice(self._commands[name]))
            arguments.append(choose.choice(self._values))
        # Commands that would have something to do, find nothing: the last value of an option counts.
        if "--model" in self._commands[name] and name != "doctor":
            arguments += ["--model", "missing.safetensors"]
        if "--data" in self._commands[name]:
            arguments += ["--data", "missing"]
        out, errors = io.StringIO(), io.StringIO()
        stdin = sys.stdin
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                sys.stdin = io.StringIO("")
                code = self._main(arguments)
        finally:
            sys.stdin = stdin
        told = errors.getvalue()
        one_line = told.startswith("error: ") and told.count("\n") <= 1
        last = (told.splitlines() or [""])[-1]
        if code == 2 and not one_line and "error: " not in last and not (name == "doctor" and out.getvalue()):
            raise AssertionError(f"{arguments}: {told!r}")  # the doctor's 2 may stand for what it has found
        if code not in (0, 1, 2, 130):
            raise AssertionError(f"{arguments}: exit code {code}")
        return f"exit code {code}"


class Images:
    """Image files of all kinds, read for training and for prediction."""

    KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "PCX", "SGI")

    def __init__(self, folder: Path) -> None:
        from rtdetrv4.data.decode import read_image
        from rtdetrv4.runtime.sources import Reading, open_frames

        self._read, self._open, self._folder = read_image, lambda path: list(open_frames(path, Reading())), folder
        pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        self._files = []
        for kind in self.KINDS:
            for image in (
                Image.fromarray(pixels),
                Image.fromarray(pixels[..., 0]),
                Image.fromarray(pixels).convert("P"),
            ):
                buffer = io.BytesIO()
                with contextlib.suppress(KeyError, OSError, ValueError):  # this Pillow does not write it
                    image.save(buffer, kind)
                    self._files.append((kind.lower(), buffer.getvalue()))

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        kind, data = choose.choice(self._files)
        path = self._folder / f"image.{choose.choice((kind, 'jpg', 'png'))}"
        path.write_bytes(damaged(data, choose))
        try:
            if choose.random() < 0.5:
                self._read(path, (40, 60))
            else:
                self._open(str(path))
        finally:
            path.unlink(missing_ok=True)
        return "read"


class Safetensors:
    """Weights of this package with another header, other metadata or damaged bytes."""

    def __init__(self, folder: Path) -> None:
        from rtdetrv4 import Detector
        from rtdetrv4.assembly import create_model
        from rtdetrv4.weights import read_checkpoint, save_weights

        self._read, self._detector, self._path = read_checkpoint, Detector, folder / "w.safetensors"
        facts = {"model": "test", "names": ["a", "b"], "category_ids": [1, 2], "image_size": [64, 64], "trained": True}
        facts |= {"thresholds": {"a": 0.5, "b": 0.25}, "training_image_size": [64.0, 80.0], "num_queries": 300}
        facts |= {"resize": "stretch", "backbone": None, "teacher": {"name": "x", "license": "y"}}
        save_weights(create_model("test", 2).state_dict(), self._path, facts)
        data = self._path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        self._header, self._body = json.loads(data[8 : 8 + length]), data[8 + length :]
        self._facts = facts

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        header, how = self._header, choose.random()
        if how < 0.6:
            facts = changed_values(self._facts, choose)
            header = header | {"__metadata__": {"format": "pt", "rtdetrv4": json.dumps(facts)}}
        elif how < 0.8:
            some = choose.sample(list(header), 3)
            header = header | {name: changed_values(header[name], choose) for name in some}
        text = json.dumps(header).encode()
        if how > 0.9:
            text = damaged(text, choose)
        length = len(text) if choose.random() < 0.95 else choose.choice(NUMBERS)
        self._path.write_bytes(struct.pack("<Q", length) + text + self._body)
        if choose.random() < 0.3:
            self._detector(str(self._path))
            return "loaded"
        self._read(self._path)
        return "read"


class Pickles:
    """Checkpoints as torch.save writes them, and training states, with damaged members."""

    def __init__(self, folder: Path) -> None:
        import torch

        from rtdetrv4.assembly import create_model
        from rtdetrv4.training.checkpoint import load_checkpoint, save_checkpoint
        from rtdetrv4.weights import read_checkpoint, to_released

        self._path, whole = folder / "w.pth", folder / "whole.pt"
        self._read = (read_checkpoint, load_checkpoint)
        state = to_released(create_model("test", 2))
        torch.save({"model": state, "ema": {"module": state}, "names": {0: "a", 1: "b"}, "size": "s"}, whole)
        archives = [whole.read_bytes()]
        save_checkpoint({"model": {"a": torch.zeros(3)}, "rng": (3, (1, 2, 3), None), "epoch": 4, "score": 0.5}, whole)
        archives.append(whole.read_bytes())
        torch.save({"model": {"a": torch.zeros(3)}, "names": {0: "a"}}, whole, _use_new_zipfile_serialization=False)
        self._legacy = whole.read_bytes()
        self._members = []
        for each in archives:
            with zipfile.ZipFile(io.BytesIO(each)) as archive:
                self._members.append({name: archive.read(name) for name in archive.namelist()})
        self._archives = archives

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        read, how = choose.choice(self._read), choose.random()
        if how < 0.2:
            self._path.write_bytes(damaged(choose.choice([*self._archives, self._legacy]), choose))
        elif how < 0.35:
            self._path.write_bytes(damaged(self._legacy, choose))
        else:
            members = choose.choice(self._members)
            changed = next(name for name in members if name.endswith("data.pkl"))
            if choose.random() < 0.15:
                changed = choose.choice(list(members))
            method = zipfile.ZIP_DEFLATED if choose.random() < 0.05 else zipfile.ZIP_STORED
            with zipfile.ZipFile(self._path, "w", method) as archive:
                for name, content in members.items():
                    archive.writestr(name, damaged(content, choose, 3) if name == changed else content)
        read(self._path)
        return "read"


class Onnx:
    """An exported ONNX file with damaged bytes and with other tensors, nodes and metadata."""

    def __init__(self, folder: Path) -> None:
        import onnx
        import onnx.parser

        from color_model import GRAPH, METADATA
        from rtdetrv4.runtime.export_metadata import METADATA_KEY

        self._path = folder / "m.onnx"
        (folder / "m.data").write_bytes(bytes(64))
        self._model = onnx.parser.parse_model(GRAPH.format(batch="batch"))
        onnx.helper.set_model_props(self._model, {METADATA_KEY: METADATA.to_json()})
        self._metadata = json.loads(METADATA.to_json())
        self._data = self._model.SerializeToString()

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        if choose.random() < 0.3:
            self._path.write_bytes(damaged(self._data, choose))
        else:
            model = copy.deepcopy(self._model)
            for _ in range(choose.randint(1, 3)):
                self._change(model, choose)
            self._path.write_bytes(model.SerializeToString())
        return _run(self._path)

    def _change(self, model: Any, choose: random.Random) -> None:
        how, graph = choose.random(), model.graph
        if how < 0.3:
            model.metadata_props[0].value = json.dumps(changed_values(self._metadata, choose))
        elif how < 0.6:
            tensor = choose.choice(graph.initializer)
            field = choose.choice(("dims", "type", "raw", "external", "name"))
            if field == "dims":
                tensor.dims[:] = [choose.choice((0, 1, 4, -1, 2**31, 2**62)) for _ in range(choose.randint(0, 4))]
            elif field == "type":
                tensor.data_type = choose.randint(0, 30)
            elif field == "raw":
                tensor.raw_data = choose.randbytes(choose.choice((0, 1, 8, 100)))
            elif field == "external":
                tensor.data_location = 1
                places = ("m.data", "../m", "/etc/passwd", "", ".", "m.onnx", "*/_ORT_MEM_ADDR_/*", "a\0b")
                numbers = ("0", "8", "-1", "x", str(2**63), "")
                tensor.external_data.add(key="location", value=choose.choice(places))
                tensor.external_data.add(key=choose.choice(("offset", "length")), value=choose.choice(numbers))
            else:
                tensor.name = choose.choice(("box", "space", "images", ""))
        elif how < 0.85:
            node = choose.choice(graph.node)
            operators = ("If", "Loop", "ConstantOfShape", "Expand", "Resize", "Gather", "Reshape", "Conv", "GridSample")
            what = choose.choice(("operator", "input", "output", "attribute"))
            if what == "operator":
                node.op_type = choose.choice((*operators, "TopK", "Concat", "Range", "Tile", "x"))
            elif what == "input" and node.input:
                node.input[choose.randrange(len(node.input))] = choose.choice(
                    ("images", "box", "space", "mean", "", "x")
                )
            elif what == "output" and node.output:
                node.output[0] = choose.choice(("images", "boxes", "logits", "x", ""))
            else:
                node.attribute.add(
                    name=choose.choice(("axis", "axes", "keepdims")), type=2, i=choose.choice((-9, 0, 2**62))
                )
        else:
            graph.input[0].type.tensor_type.elem_type = choose.randint(0, 20)


def _run(path: Path) -> str:
    """Load an exported file, and run it if it takes images that a machine may have."""
    from rtdetrv4.errors import ExportError
    from rtdetrv4.runtime import ExportedDetector

    detector = ExportedDetector(path, device="cpu", threads=1)
    height, width = detector.metadata.image_size
    if height * width > 1 << 22:
        return "loaded"
    with contextlib.suppress(ExportError):
        detector.predict(np.zeros((40, 60, 3), np.uint8))
        return "run"
    return "loaded"


class OpenVino:
    """An exported folder of OpenVINO with a damaged file."""

    def __init__(self, folder: Path) -> None:
        import openvino

        from color_model import METADATA
        from rtdetrv4.runtime.engines.openvino import the_core

        onnx = Onnx(folder)
        onnx._path.write_bytes(onnx._data)
        self._folder = folder / "m_openvino"
        self._folder.mkdir()
        openvino.save_model(the_core().read_model(str(onnx._path)), str(self._folder / "m.xml"), compress_to_fp16=False)
        (self._folder / "metadata.json").write_text(METADATA.to_json(), encoding="utf-8")
        self._files = {each.name: each.read_bytes() for each in self._folder.iterdir()}

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        name = choose.choice(("m.xml", "m.xml", "m.xml", "m.bin", "metadata.json"))
        data = self._files[name]
        if name == "m.xml":
            text = data.decode()
            how = choose.random()
            if how < 0.5:
                parts = text.split('"')  # every second one is the value of an attribute
                for _ in range(choose.randint(1, 3)):
                    at = choose.randrange(0, len(parts) // 2) * 2 + 1
                    values = (
                        "",
                        "-1",
                        "0",
                        "9" * 30,
                        str(2**31),
                        str(2**63),
                        "x",
                        "f32",
                        "1,2,3",
                        "..",
                        "i64",
                        "Const",
                    )
                    parts[at] = choose.choice((*values, parts[choose.randrange(0, len(parts) // 2) * 2 + 1]))
                changed = '"'.join(parts).encode()
            else:
                changed = changed_text(text, choose)
        elif name == "metadata.json":
            changed = json.dumps(changed_values(json.loads(data), choose)).encode()
        else:
            changed = damaged(data, choose)
        (self._folder / name).write_bytes(changed)
        try:
            return _run(self._folder)
        finally:
            (self._folder / name).write_bytes(data)


class Programs:
    """TorchScript and .pt2 files that somebody else made: none may be loaded, however damaged it is."""

    def __init__(self, folder: Path) -> None:
        import torch

        from color_model import METADATA
        from rtdetrv4.runtime.engines import open_engine
        from rtdetrv4.runtime.export_metadata import METADATA_KEY

        os.environ["XDG_CACHE_HOME"] = str(folder / "caches")
        self._open, self._folder = open_engine, folder
        program = torch.jit.trace(torch.nn.Conv2d(3, 3, 1), (torch.rand(1, 3, 8, 8),))
        torch.jit.save(program, folder / "m.torchscript", _extra_files={METADATA_KEY: METADATA.to_json()})
        exported = torch.export.export(torch.nn.Conv2d(3, 3, 1), (torch.rand(1, 3, 8, 8),))
        torch.export.save(exported, folder / "m.pt2", extra_files={METADATA_KEY: METADATA.to_json()})
        self._files = {name: (folder / name).read_bytes() for name in ("m.torchscript", "m.pt2")}

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`."""
        name = choose.choice(list(self._files))
        path = self._folder / name
        path.write_bytes(damaged(self._files[name], choose, 4))
        self._open(path)
        raise AssertionError("a program that nobody trusts was loaded")


class Caches:
    """Files of the caches of decoded images and of the teacher's features."""

    def __init__(self, folder: Path) -> None:
        from rtdetrv4.data.arrays import read_array

        self._read, self._path = read_array, folder / "a.npy"
        self._files = []
        for dtype in (np.uint8, np.float16, object):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros((40, 60, 3), dtype), allow_pickle=True)
            self._files.append(buffer.getvalue())

    def attempt(self, choose: random.Random) -> str:
        """See `Surface`; what a cache catches is a refusal."""
        data = choose.choice(self._files)
        head = damaged(data[:128], choose, 4)
        self._path.write_bytes(head + data[128:] if choose.random() < 0.8 else damaged(data, choose))
        try:
            self._read(self._path, choose.choice((np.uint8, np.float16)))
        except (OSError, ValueError):
            return "refused"
        return "read"


def _annotations(name: str) -> Callable[[Path], Surface]:
    def make(folder: Path) -> Surface:
        path = Path(__file__).parents[1] / "unit" / "data" / "test_mutations.py"
        spec = importlib.util.spec_from_file_location("valid_annotations", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return Annotations(folder, getattr(module, name))

    return make


FORMATS: Sequence[str] = ("coco", "yolo", "darknet", "label_studio", "voc", "cvat", "labelme")
SURFACES: dict[str, Callable[[Path], Surface]] = {
    **{f"annotations-{name}": _annotations(name) for name in FORMATS},
    "recipes": Recipes,
    "command-lines": CommandLines,
    "images": Images,
    "safetensors": Safetensors,
    "pickles": Pickles,
    "onnx": Onnx,
    "openvino": OpenVino,
    "programs": Programs,
    "caches": Caches,
}
