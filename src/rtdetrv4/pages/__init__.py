"""What HTML pages of this package share: the layout, charts as SVG, and pictures inside the file."""

from rtdetrv4.pages.page import MAX_BYTES, render, write_page
from rtdetrv4.pages.pictures import encode, read_thumbnail, thumbnail
from rtdetrv4.pages.svg import Bar, Interval, Line, bars, heat_map, histogram, intervals, lines

__all__ = [
    "MAX_BYTES",
    "Bar",
    "Interval",
    "Line",
    "bars",
    "encode",
    "heat_map",
    "histogram",
    "intervals",
    "lines",
    "read_thumbnail",
    "render",
    "thumbnail",
    "write_page",
]
