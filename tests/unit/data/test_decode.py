from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from rtdetrv4.data import holdout
from rtdetrv4.data.decode import read_image, read_size
from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime import pixels
from rtdetrv4.runtime.pixels import has_whole_chunks
from rtdetrv4.runtime.sources import read_source

SIZE_HW = (48, 64)


def gradient(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Red grows to the right, green downwards: any turn or swapped channel shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 40)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("a.png", "RGB", 0),
        ("a.bmp", "RGB", 0),
        ("a.tiff", "RGB", 0),
        ("a.jpg", "RGB", 10),
        ("a.jpg", "CMYK", 10),
        ("a.webp", "RGB", 12),
        ("a.png", "RGBA", 0),
        ("a.png", "P", 60),
        ("a.gif", "RGB", 30),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, mode: str, tolerance: int) -> None:
    Image.fromarray(gradient()).convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name, SIZE_HW)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - gradient()).max() <= tolerance


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_images_have_three_equal_channels(tmp_path: Path, name: str, mode: str) -> None:
    Image.fromarray(gradient()).convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name, SIZE_HW)
    assert image.shape == (*SIZE_HW, 3)
    assert np.ptp(image, axis=2).max() == 0
    assert np.ptp(image) > 50


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str) -> None:
    gray = np.linspace(0, 65535, 48 * 64).reshape(SIZE_HW).astype(np.uint16)
    cv2.imwrite(str(tmp_path / name), gray)
    image = read_image(tmp_path / name, SIZE_HW)
    assert np.abs(image - gray[..., None] / 257.0).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_in_color(tmp_path: Path, name: str) -> None:
    cv2.imwrite(str(tmp_path / name), gradient()[..., ::-1].astype(np.uint16) * 257)
    assert np.abs(read_image(tmp_path / name, SIZE_HW).astype(int) - gradient()).max() <= 1


@pytest.mark.parametrize(("dtype", "white"), [(np.float32, 1), (np.float32, 255), (np.int32, 65535)])
def test_floats_and_large_integers(tmp_path: Path, dtype: type, white: int) -> None:
    ramp = np.linspace(0, white, 48 * 64).reshape(SIZE_HW).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif", SIZE_HW)
    assert np.abs(image - ramp[..., None] * (255 / white)).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_ignored(tmp_path: Path, name: str, mode: str) -> None:
    picture = Image.fromarray(gradient()).convert(mode)
    picture.putalpha(100)
    picture.save(tmp_path / name, lossless=True)
    expected = np.array(Image.fromarray(gradient()).convert(mode).convert("RGB"))
    assert np.abs(read_image(tmp_path / name, SIZE_HW).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("a.tif", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "F", "CMYK", "YCbCr")),
        *(("a.webp", mode) for mode in ("L", "RGB", "RGBA")),
        *(("a.jpg", mode) for mode in ("L", "CMYK", "RGB")),
        *(("a.bmp", "RGB"), ("a.gif", "P"), ("a.avif", "RGB"), ("a.ppm", "RGB")),
    ],
)
def test_training_sees_what_prediction_sees(tmp_path: Path, name: str, mode: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8))
    if mode.startswith("I"):
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.int32 if mode == "I" else np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    files: dict[str, dict[str, Any]] = {name: {}}
    if name == "a.png":
        linear = PngInfo()
        linear.add(b"gAMA", struct.pack(">I", 100000))
        others = [Image.new(picture.mode, picture.size)]
        files |= {
            "gamma.png": {"pnginfo": linear},
            "profile.png": {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()},
            "film.png": {"save_all": True, "append_images": others},
            "titled-film.png": {"save_all": True, "append_images": others, "default_image": True},
        }
    if mode == "YCbCr":  # which Pillow before 13 writes without compression, but does not read
        files[name] = {"compression": "tiff_lzw"}
    if mode == "P":
        files |= {f"clear-{name}": {"transparency": 7}}
    for file, options in files.items():
        picture.save(tmp_path / file, **options)
        trained = read_image(tmp_path / file, SIZE_HW).astype(int)
        predicted = next(read_source(tmp_path / file)).image
        assert np.ptp(trained) > 0
        assert np.abs(trained - predicted).max() <= (2 if name == "a.jpg" else 0), file  # two builds of one library


def test_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("a.tif", "a.gif", "a.png", "a.jpg"):
        Image.fromarray(gradient()).save(tmp_path / name)
        assert read_size(tmp_path / name) == SIZE_HW
        assert read_image(tmp_path / name, SIZE_HW).shape == (*SIZE_HW, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_more_pixels_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels, "stored_rgb", full)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    for name in ("a.tif", "a.jpg"):
        Image.fromarray(gradient()).save(tmp_path / name)
        with pytest.raises(DatasetError, match=rf"{name} does not fit into memory; cut it into tiles"):
            read_image(tmp_path / name, SIZE_HW)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize(
    ("scale", "expected_hw"),
    [(2.0, (401, 603)), (0.51, (401, 603)), (0.5, (201, 302)), (0.2, (101, 151)), (0.01, (51, 76))],
)
def test_reads_no_more_pixels_than_needed(
    tmp_path: Path, name: str, scale: float, expected_hw: tuple[int, int]
) -> None:
    Image.fromarray(gradient(401, 603)).save(tmp_path / name, quality=95)
    image = read_image(tmp_path / name, (401, 603), scale)
    assert image.shape[:2] == expected_hw
    assert np.abs(image.astype(int) - gradient(*expected_hw)).max() <= 8


def _save_turned(path: Path, orientation: int) -> None:
    """A file that viewers turn to `gradient()`."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    (image.transpose(undo[orientation]) if orientation in undo else image).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_turns_the_image_upright(tmp_path: Path, name: str, orientation: int) -> None:
    _save_turned(tmp_path / name, orientation)
    assert read_size(tmp_path / name) == SIZE_HW
    image = read_image(tmp_path / name, SIZE_HW)
    assert np.abs(image.astype(int) - gradient()).max() <= 12
    # Users see what training saw.
    predicted = next(read_source(str(tmp_path / name))).image
    assert np.abs(image.astype(int) - predicted).max() <= 2


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"garbage"])
def test_invalid_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    assert read_size(tmp_path / "a.png") == SIZE_HW
    assert np.array_equal(read_image(tmp_path / "a.png", SIZE_HW), gradient())


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_the_size_takes_the_header_only(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
    assert read_size(tmp_path / name) == SIZE_HW
    with pytest.raises(DatasetError, match="is damaged or not an image"):
        read_image(tmp_path / name, SIZE_HW)
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DatasetError, match="is damaged or not an image"):
        read_size(tmp_path / name)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_exif_is_ignored_if_boxes_were_drawn_on_the_lying_image(tmp_path: Path, name: str, orientation: int) -> None:
    _save_turned(tmp_path / name, orientation)
    _save_turned(tmp_path / "lying.png", orientation)
    with Image.open(tmp_path / "lying.png") as lying:
        expected = np.asarray(lying)
    image = read_image(tmp_path / name, (64, 48))
    assert np.abs(image.astype(int) - expected).max() <= 12
    assert read_size(tmp_path / name, (64, 48)) == (64, 48)
    assert read_size(tmp_path / name) == read_size(tmp_path / name, (480, 640)) == SIZE_HW


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path, orientation: int) -> None:
    """Where exiftool writes it."""
    _save_turned(tmp_path / "a.png", orientation)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert read_size(tmp_path / "a.png") == SIZE_HW
    image = read_image(tmp_path / "a.png", SIZE_HW)
    assert np.array_equal(image, gradient())
    assert np.array_equal(image, next(read_source(str(tmp_path / "a.png"))).image)


def test_xmp_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    """Where exiftool writes it."""
    lying = Image.fromarray(gradient()).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert read_size(tmp_path / "a.png") == SIZE_HW
    assert np.array_equal(read_image(tmp_path / "a.png", SIZE_HW), gradient())
    assert np.array_equal(next(read_source(tmp_path / "a.png")).image, gradient())


def test_orientation_in_xmp(tmp_path: Path) -> None:
    _save_turned(tmp_path / "upright.jpg", 6)
    with Image.open(tmp_path / "upright.jpg") as stored:
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        Image.fromarray(np.asarray(stored)).save(tmp_path / "a.jpg", quality=95, xmp=xmp)
    assert read_size(tmp_path / "a.jpg") == SIZE_HW
    image = read_image(tmp_path / "a.jpg", SIZE_HW)
    assert np.abs(image.astype(int) - next(read_source(str(tmp_path / "a.jpg"))).image).max() <= 2


def test_a_resized_copy_is_read_and_another_shape_is_not(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (480, 640)).shape == (48, 64, 3)
    with pytest.raises(DatasetError, match="is 64×48 pixels, but its annotations are for 64×64"):
        read_image(tmp_path / "a.png", (64, 64))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("keep", [0, 10, 300])
def test_damaged_files(tmp_path: Path, name: str, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(DatasetError, match="is damaged or not an image"):
        read_image(tmp_path / name, SIZE_HW)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_size(tmp_path / "a.jpg")
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_image(tmp_path / "a.jpg", SIZE_HW)


def test_jpeg_with_rubbish_behind_its_end_is_fine(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", quality=95)
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"\0" * 100)
    assert read_image(tmp_path / "a.jpg", SIZE_HW).shape == (*SIZE_HW, 3)


def test_a_chunk_that_says_it_has_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV would ask for them, of a file of a few hundred bytes."""
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert has_whole_chunks(data)
    assert has_whole_chunks(data + b"\xff" * 20)  # behind the end, where nobody reads
    start = data.index(b"IDAT") - 4
    changed = data[:start] + b"\xf0\0\0\0" + data[start + 4 : start + 40]
    assert not has_whole_chunks(changed)
    (tmp_path / "a.png").write_bytes(changed)

    def decode(*_: object) -> None:
        raise AssertionError("OpenCV is asked")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(DatasetError, match=r"a\.png is damaged or not an image"):
        read_image(tmp_path / "a.png", SIZE_HW)
    assert holdout._thumbnail(tmp_path / "a.png") is None
