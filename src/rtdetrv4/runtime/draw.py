"""Boxes and labels on an image."""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Sequence
from pathlib import Path

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

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for box, color in reversed(list(zip(boxes, colors, strict=True))):
        draw.rectangle(tuple(box), outline=color, width=line)

    _, above, _, below = draw.textbbox((0, 0), "Ág_", font=font)  # the same height for all labels
    pad = max(1, round((below - above) / 7))
    placed = np.zeros((0, 4))
    for box, color, label in zip(boxes, colors, labels, strict=True):
        if not label:
            continue
        size = (math.ceil(draw.textlength(label, font=font)) + 2 * pad, math.ceil(below - above) + pad)
        place = _free_place(box, size, (height, width), placed, boxes)
        if place is None:
            continue
        placed = np.concatenate([placed, place[None]])
        draw.rectangle(tuple(place - [0, 0, 1, 1]), fill=color)
        is_bright = np.dot(color, (0.299, 0.587, 0.114)) > 110
        corner = (place[0] + pad, place[1] + pad / 2 - above)
        draw.text(corner, label, font=font, fill="black" if is_bright else "white")
    return np.array(canvas)


def draw_outline(image: np.ndarray, points: Sequence[tuple[float, float]], label: str) -> np.ndarray:
    """Draw a line or the outline of a zone, with a label at its middle.

    Args:
        image: H×W×3 uint8 RGB; not changed.
        points: two ends, or three corners and more: (x, y) in pixels.
        label: what is written there.

    Returns:
        H×W×3 uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = (height * width) ** 0.5
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    closed = [*points, points[0]] if len(points) > 2 else list(points)
    line = max(1, round(scale / 300))
    draw.line(closed, fill="black", width=line + 2, joint="curve")
    draw.line(closed, fill="white", width=line, joint="curve")
    font = _font(label.isascii(), max(_MIN_FONT_SIZE, round(scale / 38)))
    _, above, right, below = draw.textbbox((0, 0), label, font=font)
    pad = max(1, round((below - above) / 4))
    size = np.array([right + 2 * pad, below - above + 2 * pad])
    middle = np.mean(np.asarray(points, dtype=np.float64), axis=0)
    left, top = (middle - size / 2).clip(0, np.maximum(np.array([width, height]) - size, 0))
    draw.rectangle((left, top, left + size[0] - 1, top + size[1] - 1), fill="black")
    draw.text((left + pad, top + pad - above), label, font=font, fill="white")
    return np.array(canvas)


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
