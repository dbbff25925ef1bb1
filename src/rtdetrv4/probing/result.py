"""The results of a probe: scores with their spread over folds, as a table, a picture and JSON."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rtdetrv4.outputs import unused_folder, write_text

PROBE_FILES = ("probe.json", "probe.txt", "probe.png")
TEXT_WIDTH = 80
MAX_CLASSES = 20
"""Most rows in the table of classes; probe.json has all."""
TEACHERS_ABREAST = 10
"""Columns of that table."""


class Score(NamedTuple):
    """A share in [0, 1], over folds."""

    mean: float
    sd: float
    """Standard deviation over folds."""
    by_fold: tuple[float | None, ...]
    """None where a fold has nothing to measure it on."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        """The score of one number for each fold, NaN where there is none."""
        known = [value for value in values if not math.isnan(value)]
        return cls(
            statistics.fmean(known) if known else math.nan,
            statistics.stdev(known) if len(known) > 1 else 0.0,
            tuple(None if math.isnan(value) else value for value in values),
        )


class TeacherRow(NamedTuple):
    """What a linear classifier can tell from the features of one teacher."""

    teacher: str
    """As it was asked for; or `MAJORITY`."""
    name: str
    """In full, as checkpoints record it."""
    license: str
    """Of its weights; empty if it has none."""
    dim: int | None
    stride: int | None
    """Pixels per cell of its map."""
    ms_per_image: float | None
    """On this machine, for images of the size that the teacher sees."""
    balanced: Score
    """Balanced accuracy: the mean recall of all classes and background."""
    objectness: Score
    """Balanced accuracy of a second classifier, which tells boxes from background."""
    recall: Mapping[str, Score]
    """Of each class and of background, by name."""


class TeacherProbe(NamedTuple):
    """How well several teachers separate the objects of a data set, from the same boxes in the same folds."""

    rows: tuple[TeacherRow, ...]
    """The best first; the last knows only how frequent the classes are."""
    data: str
    num_images: int
    num_boxes: Mapping[str, int]
    """Boxes of each class, and of background."""
    num_folds: int
    image_size: tuple[int, int]
    """(H, W) of a detector that would learn from the teachers; they see what suits its grid."""
    seed: int
    device: str
    """What the times are of."""
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def to_json(self) -> str:
        """The content of probe.json."""

        def plain(row: TeacherRow) -> dict[str, Any]:
            scores = {name: getattr(row, name)._asdict() for name in ("balanced", "objectness")}
            return {**row._asdict(), **scores, "recall": {name: each._asdict() for name, each in row.recall.items()}}

        return json.dumps({**self._asdict(), "rows": list(map(plain, self.rows))}, indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        """Tables in 80 columns."""
        text = io.StringIO()
        console = Console(file=text, width=TEXT_WIDTH, color_system=None, legacy_windows=False)
        console.print(self._table())
        for first in range(0, len(self.rows), TEACHERS_ABREAST):
            console.print()
            console.print(self._table_of_classes(first))
        for note in self.notes:
            console.print()
            console.print(Text(note))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def save(self, folder: str | Path) -> Path:
        """Write probe.json, probe.txt and probe.png.

        Args:
            folder: created if missing; one that holds such files is left as it is.

        Returns:
            `folder`, or the folder beside it that was taken instead.
        """
        from rtdetrv4.probing.picture import draw_probe

        folder = unused_folder(Path(folder), PROBE_FILES)
        to_json, to_text, to_picture = (folder / name for name in PROBE_FILES)
        write_text(to_json, self.to_json())
        write_text(to_text, f"{self}\n")
        draw_probe(self, to_picture)
        return folder

    def _table(self) -> Table:
        height, width = self.image_size
        num_objects = sum(list(self.num_boxes.values())[:-1])
        table = Table(
            Column("#", justify="right", no_wrap=True),
            Column("teacher", overflow="fold", max_width=27),
            *(Column(name, justify="right", no_wrap=True) for name in ("classes", "box?", "ms", "D/stride")),
            Column("license", overflow="fold", max_width=14),
            title=Text(
                f"{self.data}: {num_objects} boxes of {self.num_images} training images, for a detector that sees "
                f"{height}×{width}"
            ),
            padding=(0, 1, 0, 0),
            caption="classes: balanced accuracy over all classes and background, in percent; box?: over boxes and "
            f"background. Mean ± standard deviation over {self.num_folds} folds of images. ms: per image, on "
            f"{self.device}. The order is a guess at what helps a detector: only training with a teacher can tell.",
            title_justify="left",
            caption_justify="left",
            box=None,
        )
        for number, row in enumerate(self.rows, start=1):
            ms = "" if row.ms_per_image is None else f"{row.ms_per_image:.3g}"
            shape = "" if row.dim is None else f"{row.dim}/{row.stride}"
            scores = (_percent(row.balanced), _percent(row.objectness))
            # Text, because brackets in a name are not markup.
            table.add_row(str(number), Text(row.teacher), *scores, ms, shape, Text(row.license))
        return table

    def _table_of_classes(self, first: int) -> Table:
        rows = self.rows[first : first + TEACHERS_ABREAST]
        names = sorted(list(self.num_boxes)[:-1], key=lambda name: -self.num_boxes[name])
        caption = "Percent of the boxes that are told as what they are."
        if len(names) > MAX_CLASSES:
            caption += f" The {MAX_CLASSES} most frequent of {len(names)} classes."
        table = Table(
            Column("recall of", overflow="fold"),
            Column("boxes", justify="right"),
            *(Column(f"#{first + number}", justify="right") for number in range(1, len(rows) + 1)),
            caption=caption,
            caption_justify="left",
            box=None,
            pad_edge=False,
        )
        for name in [*names[:MAX_CLASSES], list(self.num_boxes)[-1]]:
            table.add_row(
                Text(name), str(self.num_boxes[name]), *(f"{100 * row.recall[name].mean:.0f}" for row in rows)
            )
        return table


def _percent(score: Score) -> str:
    return f"{100 * score.mean:.1f} ±{100 * score.sd:.1f}"
