"""Every pixel type through every door: the same picture comes out as the same H×W×3 uint8 RGB."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from rtdetrv4.data.decode import decode_reduced
from rtdetrv4.errors import SourceError
from rtdetrv4.runtime import pixels, read_source
from rtdetrv4.runtime.pixels import PixelsError, decode_image, decode_stored, rgb_from_pil

# Red grows to the right, green downwards: any turn or swapped channel shows.
PICTURE = np.stack([*np.meshgrid(np.arange(40) * 6, np.arange(24) * 10), np.full((24, 40), 40)], axis=2).astype(
    np.uint8
)
GRAY = PICTURE[..., :1]
ALPHA = PICTURE[..., :1] // 2


def read(source: Any) -> np.ndarray:
    (frame,) = read_source(source)
    assert frame.image.dtype == np.uint8
    assert frame.image.ndim == 3
    assert frame.image.shape[2] == 3
    return frame.image


def by_file(image: Image.Image, folder: Path, name: str) -> list[np.ndarray]:
    """The image read by name, as a PIL object that was opened, and as one in memory."""
    # Pillow before 13 cannot read what it writes of YCbCr without compression.
    image.save(folder / name, **({"compression": "tiff_lzw"} if image.mode == "YCbCr" else {}))
    with Image.open(folder / name) as opened:
        return [read(folder / name), read(opened), read(image)]


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        ("1", "a.png", 0),
        ("L", "a.png", 0),
        ("L", "a.JPG", 4),
        ("LA", "a.png", 0),
        ("P", "a.png", 60),
        ("P", "a.gif", 60),
        ("RGB", "a.jfif", 16),
        ("RGB", "a.avif", 16),
        ("RGB", "a.PPM", 0),
        ("RGBA", "a.png", 0),
        ("RGBA", "a.tif", 0),
        ("CMYK", "a.tif", 3),
        ("YCbCr", "a.tif", 6),
        ("HSV", None, 12),
        ("RGBX", None, 0),
    ],
)
def test_modes_of_pillow(mode: str, name: str | None, tolerance: int, tmp_path: Path) -> None:
    is_gray = mode in {"1", "L", "LA"}
    expected = np.repeat(GRAY, 3, axis=2) if is_gray else PICTURE
    image = Image.fromarray(expected).convert(mode)
    if mode == "1":
        expected = np.repeat(np.where(np.array(image), 255, 0)[..., None], 3, axis=2)
    for found in [read(image)] if name is None else by_file(image, tmp_path, name):
        assert np.abs(found.astype(int) - expected).max() <= tolerance


def test_palettes_with_transparency_give_no_warning(tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(100)))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_high_byte(suffix: str, channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (24, 40, channels), dtype=np.uint16)
    (tmp_path / f"a{suffix}").write_bytes(cv2.imencode(suffix, values[..., ::-1])[1].tobytes())
    expected = np.broadcast_to(values >> 8, (24, 40, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}"), expected)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        np.testing.assert_array_equal(read(opened), expected)
    np.testing.assert_array_equal(read(values), expected)
    np.testing.assert_array_equal(read(values.astype(">u2")), expected)
    np.testing.assert_array_equal(read(torch.from_numpy(values).permute(2, 0, 1)), expected)
    if channels == 1:
        for mode in ("I", "I;16B"):
            np.testing.assert_array_equal(read(Image.fromarray(values[..., 0]).convert("I").convert(mode)), expected)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "bool", "float16", "float32", "float64"])
def test_arrays_and_tensors(channels: int | None, kind: str) -> None:
    values = {None: GRAY[..., 0], 1: GRAY, 3: PICTURE, 4: np.concatenate([PICTURE, ALPHA], axis=2)}[channels]
    expected = PICTURE if channels in {3, 4} else np.repeat(GRAY, 3, axis=2)
    if kind == "bool":
        values, expected = values > 127, np.where(expected > 127, 255, 0)
    elif kind == "uint16":
        values = values.astype(np.uint16) * 257
    elif kind.startswith("float"):
        values = (values / 255).astype(kind)
    tensor = torch.from_numpy(values)
    tensor = tensor if channels is None else tensor.permute(2, 0, 1)
    for found in (read(values), read(tensor)):
        np.testing.assert_array_equal(found, expected)
    if channels is not None:
        for several in (np.stack([values, values]), torch.stack([tensor, tensor])):
            assert [frame.number for frame in read_source(several)] == [0, 1]
    if kind == "float32":
        np.testing.assert_allclose(read(tensor.bfloat16()).astype(int), expected, atol=1)


def test_an_array_in_the_right_form_is_not_copied() -> None:
    assert np.shares_memory(read(PICTURE), PICTURE)
    turned = PICTURE[::-1, :, ::-1]
    np.testing.assert_array_equal(read(turned), turned)


def test_whatever_turns_into_an_array() -> None:
    class Wrapped:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return PICTURE

    np.testing.assert_array_equal(read(Wrapped()), PICTURE)


def test_arrays_of_names_are_lists(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    names = [str(tmp_path / "a.png")] * 2
    for given in (np.array(names), np.array(names, dtype=object)):
        assert len(list(read_source(given))) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 24, 40), np.uint8), r"\(3, 24, 40\) and type uint8 is not an image.*\.transpose\(1, 2, 0\)"),
        (np.zeros((24, 40, 2), np.uint8), r"an array of shape \(24, 40, 2\)"),
        (np.zeros((0, 40, 3), np.uint8), r"an array of shape \(0, 40, 3\)"),
        (np.zeros((24, 40, 0), np.uint8), r"an array of shape \(24, 40, 0\)"),
        (np.zeros(24, np.uint8), r"an array of shape \(24,\)"),
        (np.array(3, np.uint8), r"an array of shape \(\)"),
        (np.zeros((2, 24, 40, 3, 1), np.uint8), r"an array of shape \(2, 24, 40, 3, 1\)"),
        (np.zeros((8, 8, 3), int), r"of type int64 is not an image.*\.astype\(np\.uint8\)"),
        (np.zeros((8, 8, 3), complex), "of type complex128 is not an image"),
        (np.full((8, 8, 3), 200.0), r"values 200...200 is not an image; expected \[0, 1\].*convert it to uint8"),
        (np.full((8, 8, 3), -1.5), r"values -1.5...-1.5 is not an image"),
        (np.full((8, 8, 3), np.inf), "values inf...inf is not an image"),
        (torch.zeros(24, 40, 3), r"a tensor of shape \(24, 40, 3\) is not an image; .*\.permute\(2, 0, 1\)"),
        (torch.zeros(3), r"a tensor of shape \(3,\)"),
        (torch.zeros(3, 0, 8), r"of shape \(0, 8, 3\)"),
        (torch.full((3, 8, 8), torch.nan), r"values nan...nan is not an image"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "of type int64"),
        (Image.fromarray(np.full((8, 8), 70000, np.int32)), "a PIL image of type int32"),
        (Image.fromarray(np.full((8, 8), 70.0, np.float32)), r"a PIL image .*values 70...70"),
        (Image.new("La", (8, 8)), "a PIL image has mode La"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(source: object, message: str) -> None:
    with pytest.raises(SourceError, match=message) as error:
        read_source(source)
    assert "\n" not in str(error.value)


def test_floats_may_overshoot_a_little() -> None:
    values = np.array([[[-0.08, 0.5, 1.08]]])
    assert read(values).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("white", [1, 255])
def test_floats_of_files_may_be_bytes(white: int, tmp_path: Path) -> None:
    values = (GRAY[..., 0] / 255 * white).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened:
        for found in (read(tmp_path / "a.tif"), read(opened)):
            np.testing.assert_array_equal(found, np.repeat(GRAY, 3, axis=2))


@pytest.mark.parametrize("value", [400, -200, np.nan])
def test_files_of_measurements_are_refused(value: float, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(SourceError, match=r"a\.tif of floats with values .* is not an image"):
        read(tmp_path / "a.tif")


def turned(orientation: int) -> Image.Image:
    """PICTURE as a camera stores it that was held in this way."""
    undo = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90}
    image = Image.fromarray(PICTURE)
    image = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return image


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 99])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_photos_are_upright_through_every_door(orientation: int, name: str, tmp_path: Path) -> None:
    stored = turned(orientation)
    stored.save(tmp_path / name, exif=stored.info["exif"], **({"lossless": True} if name == "a.webp" else {}))
    tolerance = 16 if name == "a.jpg" else 0
    with Image.open(tmp_path / name) as opened, Image.open(tmp_path / name) as by_hand:
        doors = [read(tmp_path / name), read(opened), read(ImageOps.exif_transpose(by_hand))]
    for found in doors:
        np.testing.assert_allclose(found, PICTURE, atol=tolerance)


@pytest.mark.parametrize("kind", ["EXIF after the pixels", "XMP"])
def test_orientation_in_unusual_places(kind: str, tmp_path: Path) -> None:
    stored = turned(6)
    if kind == "XMP":
        stored.info.pop("exif")
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        stored.save(tmp_path / "a.webp", xmp=xmp, lossless=True)
        np.testing.assert_array_equal(read(tmp_path / "a.webp"), PICTURE)
        return
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=b"")
    block = stored.info["exif"].removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    whole = buffer.getvalue()
    (tmp_path / "a.png").write_bytes(whole[:-12] + chunk + whole[-12:])  # as exiftool writes it
    np.testing.assert_array_equal(read(tmp_path / "a.png"), PICTURE)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"rubbish"])
def test_damaged_exif_costs_nothing(exif: bytes, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), PICTURE)


def test_pillows_limit_for_strangers_does_not_apply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it warns above, and refuses twice as many
    for name in ("a.tif", "a.gif", "a.png"):
        Image.fromarray(PICTURE).save(tmp_path / name)
        assert read(tmp_path / name).shape == PICTURE.shape
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(pixels, "MAX_PIXELS", 900)
    with pytest.raises(SourceError, match=r"a.png has 40×24 pixels, expected at most .*; cut it into tiles"):
        read(tmp_path / "a.png")


def test_an_image_beyond_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(pixels, "stored_rgb", full)
    with pytest.raises(SourceError, match=r"a\.png does not fit into memory"):
        read(tmp_path / "a.png")


def test_heif_says_what_to_do() -> None:
    with pytest.raises(PixelsError, match=r"is a HEIF photo \(\.heic\).*save it as JPEG"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(40))


@pytest.mark.parametrize("how", ["closed", "cut"])
def test_a_pil_image_whose_file_is_gone_or_cut(how: str, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    image = Image.open(io.BytesIO(data if how == "closed" else data[: len(data) // 2]))
    if how == "closed":
        image.close()
    with pytest.raises(SourceError, match="the PIL image without a file cannot be read") as error:
        read_source(image)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hw", [(1, 1), (1, 10_000), (10_000, 1), (3, 40_000)])
def test_odd_shapes(hw: tuple[int, int], tmp_path: Path) -> None:
    Image.fromarray(np.full((*hw, 3), 7, np.uint8)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").shape == (*hw, 3)


def test_the_first_picture_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert set(np.unique(read(tmp_path / "a.gif"))) == {50}


def test_rgb_from_pil_is_the_callers_own() -> None:
    image = Image.fromarray(PICTURE)
    own = rgb_from_pil(image)
    own[:] = 0
    np.testing.assert_array_equal(np.asarray(image), PICTURE)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes = b"", before: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND")


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def jpeg_that_says(width: int, height: int) -> bytes:
    data = saved(Image.new("RGB", (16, 16)), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def tiled_tiff(side: int) -> bytes:
    """16×16 pixels in one tile of `side` pixels a side."""
    packed = zlib.compress(bytes(10**6))
    entries = ((256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side))
    tags = [*entries, (324, 8), (325, len(packed))]
    head = b"II*\0" + struct.pack("<I", 8 + len(packed) + len(packed) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return head + packed + bytes(len(packed) % 2) + struct.pack("<H", len(tags)) + directory + bytes(4)


ROW = bytes(25)
TEXT = zlib.compress(bytes(300 * 10**6))
HOSTILE = {
    "a header of 10^10 pixels": (png(100_000, 100_000), "expected at most 2^30"),
    "a header of 2^62 pixels": (png(2**31 - 1, 2**31 - 1), "expected at most 2^30"),
    "a header of 3 GB in 74 bytes": (png(30_000, 30_000), "cannot hold the 30000×30000 pixels"),
    "no width": (png(0, 8), "is damaged or not an image"),
    "a text of 300 MB": (
        png(8, 8, ROW * 8, png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(300 * 10**6)))),
        "damaged",
    ),
    "millions of chunks": (png(8, 8, ROW * 8, png_chunk(b"abCd") * 200_000), "PNG file of more than 19"),
    "a JPEG of 13 GB": (jpeg_that_says(65_500, 65_500), "expected at most 2^30"),
    "a JPEG of 3 GB": (jpeg_that_says(30_000, 30_000), "cannot hold"),
    "a JPEG without height": (jpeg_that_says(16, 0), "is damaged"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) run\n", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "a canvas of a GIF": (
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + saved(Image.new("L", (1, 1)), "GIF")[10:],
        "expected at most 2^30",
    ),
    "a text of PPM": (b"P6 " + b"9" * 10**6 + b" 8 255\n", "is damaged"),
    "zeros": (bytes(10**6), "not an image"),
    "tiles of many times the image": (tiled_tiff(16_384), "tiles of 16384×16384 pixels for 16×16"),
    "millions of segments": (b"\xff\xd8" + b"\xff\xe5\0\2" * 200_000, "begins with more than 10000 segments"),
    "millions of bytes before a segment": (b"\xff\xd8\xff" + bytes(10**6), "begins with more than 10000 segments"),
    "a million comments": (b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1A\0" * 200_000, "begins with more than 25625 segments"),
    "a comment of a million blocks": (
        b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + b"!\xfe" + b"\1A" * 500_000,
        "begins with more than 25625 segments",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_before_memory_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, message = HOSTILE[name]
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a program is started"))
    before = memory_peak()
    for decode in (
        decode_image,
        decode_stored,
        lambda data: decode_reduced(data, 1),
        lambda data: decode_reduced(data, 8),
    ):
        with pytest.raises(PixelsError, match=re.escape(message)):
            decode(data)
    assert memory_peak() - before < 200 * 10**6


def memory_peak() -> int:
    resource = pytest.importorskip("resource")
    return 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    """Each takes as long as the whole image: half a megabyte would take minutes."""
    data = saved(Image.new("RGB", (64, 64), (200, 100, 50)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode_image(data).shape == (64, 64, 3)
    with pytest.raises(PixelsError, match="more than 100 scans"):
        decode_image(data[:-2] + last * 1000 + b"\xff\xd9")
    with pytest.raises(PixelsError, match="more than 100 scans"):
        decode_reduced(data[:-2] + last * 1000 + b"\xff\xd9", 1)
    # What looks like scans behind the image, or inside of its metadata, is none.
    assert decode_image(data + b"\xff\xda" * 1000).shape == (64, 64, 3)
    note = b"\xff\xfe" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    assert decode_image(data[:2] + note + data[2:]).shape == (64, 64, 3)


def test_tiles_and_segments_that_encoders_write() -> None:
    picture = Image.effect_noise((100, 60), 80).convert("RGB")
    expected = np.asarray(picture)
    note = b"".join(b"\xff\xee" + struct.pack(">H", 102) + bytes(100) for _ in range(2000))
    photo = saved(picture, "JPEG")
    np.testing.assert_array_equal(decode_image(photo[:2] + b"\xff\xff" + note + photo[2:]), decode_image(photo))
    animation = saved(picture.quantize(), "GIF", comment=b"x" * 10_000)
    assert decode_image(animation).shape == expected.shape
    for options in ({"compression": "tiff_lzw"}, {"tiffinfo": {322: 256, 323: 256}}, {}):
        np.testing.assert_array_equal(decode_image(saved(picture, "TIFF", **options)), expected)


def test_a_large_file_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit is lifted as long as one needs it, and nobody waits for another."""
    usual = Image.MAX_IMAGE_PIXELS
    is_decoding, may_end = threading.Event(), threading.Event()
    load = TiffImagePlugin.TiffImageFile.load

    def slow(image: Any) -> Any:
        is_decoding.set()
        assert may_end.wait(30)
        return load(image)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", slow)
    picture = Image.new("RGB", (16, 16))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(decode_image, saved(picture, "TIFF"))
        assert is_decoding.wait(30)
        assert decode_image(saved(picture, "PNG")).shape == (16, 16, 3)
        assert Image.MAX_IMAGE_PIXELS is None
        may_end.set()
        assert waiting.result(30).shape == (16, 16, 3)
    assert usual == Image.MAX_IMAGE_PIXELS


def test_kinds_of_files_that_no_one_takes_for_photos_are_not_tried() -> None:
    for kind in ("TGA", "PCX", "ICO", "SGI", "DDS"):
        with pytest.raises(PixelsError, match="not an image"):
            decode_image(saved(Image.new("RGB", (16, 16)), kind))
