"""Boxes and labels on an image."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rtdetrv4.outputs import write_whole

# Okabe and Ito's colors, distinguishable with any color vision, with a brighter dark blue. Further classes get hues as
# far apart as possible.
_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#8C6BFF")
_GOLDEN_RATIO = 0.618034
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
)
_MIN_FONT_SIZE = 9
_MAX_HIDDEN = 0.35

Color = tuple[int, int, int]


def color_of_class(class_id: int) -> Color:
    """Return the RGB color of a class: always the same, and distinct for the first few dozen classes."""
    if class_id < len(_COLORS):
        return tuple(bytes.fromhex(_COLORS[class_id][1:]))  # pyright: ignore[reportReturnType]
    hue = class_id * _GOLDEN_RATIO % 1
    saturation, value = ((0.9, 0.95), (0.5, 1.0), (0.85, 0.65))[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: np.ndarray,
    xyxy: np.ndarray,
    class_ids: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Draw boxes with their labels; line width and font size grow with the image.

    A label goes to a corner of its box where it hides neither another label nor an object. Where boxes are too dense
    for that, it is left out, and the color identifies the class.

    Args:
        image: H×W×3 uint8 RGB; not changed.
        xyxy: (n, 4), pixels; labels of earlier boxes get the better places.
        class_ids: (n,), which determine the colors.
        labels: n texts; an empty one leaves the box without a label.
        colors: n colors instead of those of the classes.

    Returns:
        H×W×3 uint8 RGB.
    """
    labels = [" ".join(label.split()) for label in labels]  # on one line, whatever a class is called
    height, width = image.shape[:2]
    boxes = np.asarray(xyxy, dtype=np.float64).reshape(-1, 4).round().clip(0, [width - 1, height - 1] * 2)
    colors = [color_of_class(int(class_id)) for class_id in class_ids] if colors is None else colors
    scale = (height * width) ** 0.5
    typical_box = float(np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1))) if len(boxes) else scale
    line = max(1, round(min(scale / 300, typical_box / 15)))
    font = _font("".join(labels).isascii(), max(_MIN_FONT_SIZE, round(min(scale / 38, typical_box / 2.5))))

    # Pillow draws the text only: to make an image of its own of a frame, and back, takes longer than all the rest.
    picture = image.copy()
    for box, color in reversed(list(zip(boxes.astype(int).tolist(), colors, strict=True))):
        _draw_frame(picture, box, color, line)

    placed = np.zeros((0, 4))
    for box, color, label in zip(boxes, colors, labels, strict=True):
        if not label:
            continue
        sign = _sign(label, font, color)
        place = _free_place(box, sign.shape[1::-1], (height, width), placed, boxes)
        if place is None:
            continue
        placed = np.concatenate([placed, place[None]])
        left, top = place[:2].astype(int).tolist()
        picture[top : top + sign.shape[0], left : left + sign.shape[1]] = sign
    return picture


@functools.lru_cache(maxsize=512)  # the labels of a video repeat themselves
def _sign(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, color: Color) -> np.ndarray:
    """A text on a color, as high for every text: h×w×3 uint8 RGB."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, above, _, below = measure.textbbox((0, 0), "Ág_", font=font)
    pad = max(1, round((below - above) / 7))
    size = (math.ceil(measure.textlength(label, font=font)) + 2 * pad, math.ceil(below - above) + pad)
    is_bright = np.dot(color, (0.299, 0.587, 0.114)) > 110
    sign = Image.new("RGB", size, color)
    ImageDraw.Draw(sign).text((pad, pad / 2 - above), label, font=font, fill="black" if is_bright else "white")
    return np.array(sign)


def _draw_frame(picture: np.ndarray, box: Sequence[int], color: Color, line: int) -> None:
    """Draw the outline of a box into a picture, its last row and column included."""
    x1, y1, x2, y2 = box
    for rows, columns in (
        (slice(y1, y1 + line), slice(x1, x2 + 1)),
        (slice(max(y2 + 1 - line, 0), y2 + 1), slice(x1, x2 + 1)),
        (slice(y1, y2 + 1), slice(x1, x1 + line)),
        (slice(y1, y2 + 1), slice(max(x2 + 1 - line, 0), x2 + 1)),
    ):
        picture[rows, columns] = color


def draw_outlines(image: np.ndarray, shapes: Sequence[tuple[Sequence[tuple[float, float]], str]]) -> np.ndarray:
    """Draw lines and the outlines of zones, each with a label at its middle, or near it if another label is there.

    Args:
        image: H×W×3 uint8 RGB; not changed.
        shapes: two ends, or three corners and more, as (x, y) in pixels; and what is written there.

    Returns:
        H×W×3 uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = (height * width) ** 0.5
    picture = image.copy()
    line = max(1, round(scale / 300))
    for points, _ in shapes:
        corners = [np.round(points).astype(np.int32).clip(-(2**15), 2**15)]
        for color, thickness in (((0, 0, 0), line + 2), ((255, 255, 255), line)):
            cv2.polylines(picture, corners, len(points) > 2, color, thickness)
    placed = np.zeros((0, 4))
    for points, label in shapes:
        font = _font(label.isascii(), max(_MIN_FONT_SIZE, round(scale / 38)))
        sign = _sign(label, font, (0, 0, 0))
        size = np.array(sign.shape[1::-1])
        middle = np.mean(np.asarray(points, dtype=np.float64), axis=0)
        steps = range(-len(placed), len(placed) + 1)  # so many labels can be in the way
        shifts = [np.array([0, step * (size[1] + 1)]) for step in sorted(steps, key=abs)]
        places = [(middle + shift - size / 2).round() for shift in shifts]
        limit = np.maximum(np.array([width, height]) - size, 0)
        rectangles = [np.concatenate([corner, corner + size]) for corner in np.clip(places, 0, limit)]
        place = next((each for each in rectangles if not _hidden(placed, each).any()), rectangles[0])
        placed = np.concatenate([placed, place[None]])
        left, top = place[:2].astype(int).tolist()
        spot = picture[top : top + size[1], left : left + size[0]]
        spot[:] = sign[: spot.shape[0], : spot.shape[1]]
    return picture


def draw_text(text: str, width: int, *, size: int = 15) -> np.ndarray:
    """Draw black text on white, in as many lines as it needs; a word that is too long for one loses its middle.

    Args:
        text: words, separated by blanks.
        width: width of the picture, in pixels.
        size: font size, in pixels.

    Returns:
        h×width×3 uint8 RGB.
    """
    font = _font(text.isascii(), size)
    lines: list[str] = []
    for word in text.encode("utf-8", "replace").decode().split():  # a file name may be anything
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        shown, kept = word, len(word)
        while kept > 2 and font.getlength(shown) > width:
            kept -= 1
            shown = f"{word[: (kept + 1) // 2]}…{word[len(word) - kept // 2 :]}"
        lines.append(shown)
    spacing = round(1.3 * size)
    canvas = Image.new("RGB", (width, spacing * max(len(lines), 1) + size // 3), "white")
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((0, number * spacing), line, font=font, fill="black")
    return np.array(canvas)


def contact_sheet(
    pictures: Sequence[np.ndarray], path: str | Path, *, columns: int = 3, width: int = 640, margin: int = 0
) -> None:
    """Write pictures of any size to one file, in rows.

    Args:
        pictures: H×W×3 uint8 RGB each, in reading order.
        path: the file; its folder is created if needed.
        columns: pictures per row.
        width: width of each picture, in pixels.
        margin: white space around all of them, in pixels.
    """
    shown = [Image.fromarray(p).resize((width, max(1, round(width * p.shape[0] / p.shape[1])))) for p in pictures]
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    gap = 6
    size = (columns * (width + gap) - gap + 2 * margin, sum(heights) + gap * (len(rows) - 1) + 2 * margin)
    sheet = Image.new("RGB", size, "white")
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (margin + column * (width + gap), top))
        top += height + gap
    path = Path(path)
    kind = Image.registered_extensions()[path.suffix.lower()]  # the name that it first gets does not tell
    write_whole(path, lambda temporary: sheet.save(temporary, kind, quality=90))


def _free_place(
    box: np.ndarray, size: tuple[float, float], image_hw: tuple[int, int], placed: np.ndarray, boxes: np.ndarray
) -> np.ndarray | None:
    """Return the best rectangle for a label of `size` (width, height), or None if there is none."""
    x1, y1, x2, y2 = box
    width, height = size
    for y in (y1 - height, y1, y2 + 1, y2 - height + 1):
        for x in (x1, x2 - width + 1):
            x = max(0, min(x, image_hw[1] - width))
            place = np.array([x, y, x + width, y + height])
            is_inside = y >= 0 and place[2] <= image_hw[1] and place[3] <= image_hw[0]
            if is_inside and not _hidden(placed, place).any() and _hidden(boxes, place).max() <= _MAX_HIDDEN:
                return place
    return None


def _hidden(boxes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the share of each box that the rectangle `place` covers."""
    sides = np.minimum(boxes[:, 2:], place[2:]) - np.maximum(boxes[:, :2], place[:2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return sides.clip(min=0).prod(axis=1) / np.maximum(area, 1)


@functools.lru_cache(maxsize=32)
def _font(is_ascii: bool, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load Pillow's own font or, for text in other scripts, an installed font that covers them."""
    if not is_ascii:
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)
