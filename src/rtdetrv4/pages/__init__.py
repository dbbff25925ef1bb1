"""What HTML pages of this package share: the layout, charts as SVG, and pictures inside the file."""

from rtdetrv4.pages.page import MAX_BYTES, render, write_page
from rtdetrv4.pages.pictures import encode, read_thumbnail, thumbnail
from rtdetrv4.pages.svg import Bar, Line, bars, heat_map, histogram, lines

__all__ = [
    "MAX_BYTES",
    "Bar",
    "Line",
    "bars",
    "encode",
    "heat_map",
    "histogram",
    "lines",
    "read_thumbnail",
    "render",
    "thumbnail",
    "write_page",
]
