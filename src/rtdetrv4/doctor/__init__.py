"""The doctor: what is wrong with a data set, where, what training does about it, and what to do.

A check is a function that takes an `Inspection` and yields the code of a fault with an `Example`, once for each time it
occurs. Each module of checks lists its own in `CHECKS`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from rtdetrv4.data.formats import LoadedData
from rtdetrv4.doctor import annotation_checks, file_checks, set_checks
from rtdetrv4.doctor.codes import CODES
from rtdetrv4.doctor.finding import MAX_EXAMPLES, SEVERITIES, Example, Finding, Findings, PartCounts, Severity
from rtdetrv4.doctor.inspection import INPUT_HW, ImageFacts, Inspection, Part, inspect, inspect_quickly
from rtdetrv4.doctor.lines import forget_files
from rtdetrv4.doctor.page import check_folder, write_pages
from rtdetrv4.doctor.repair import check_destination, write_repaired_copy
from rtdetrv4.doctor.suspects import Detect, suspected
from rtdetrv4.errors import ConfigError

__all__ = [
    "CODES",
    "Detect",
    "Example",
    "Finding",
    "Findings",
    "ImageFacts",
    "Inspection",
    "Part",
    "PartCounts",
    "Severity",
    "doctor",
    "examine",
    "found_in",
    "inspect",
    "quick_findings",
    "suspected",
    "write_pages",
    "write_repaired_copy",
]

Check = Callable[[Inspection], Iterator[tuple[str, Example]]]
QUICK_CHECKS: tuple[Check, ...] = (*annotation_checks.CHECKS, *set_checks.QUICK_CHECKS)
"""Those that have something to say if no image was opened."""
CHECKS: tuple[Check, ...] = (*file_checks.CHECKS, *QUICK_CHECKS, *set_checks.CHECKS)


def doctor(
    data: str | Path,
    *,
    quick: bool = False,
    out: str | Path | None = None,
    fix: str | Path | None = None,
    detect: Detect | None = None,
    input_hw: tuple[int, int] = INPUT_HW,
) -> Findings:
    """Find what is wrong with a data set, which is not changed.

    Everything that `train` reads is checked, and every image is decoded; the first fault does not end the search.

    Args:
        data: a folder of COCO, YOLO, Pascal VOC, LabelMe or CVAT annotations, a YAML, COCO or CVAT file.
        quick: check only what can be found without opening an image.
        out: folder for doctor.html, a page with pictures of the findings, and doctor.json; out-2, out-3, … if it holds
            earlier ones. None writes nothing.
        fix: folder for a repaired copy, see `rtdetrv4.doctor.repair`; it must be new or empty.
        detect: finds objects in the images of a split, as `Detector.detections_in` does: labels that it contradicts
            are findings, too.
        input_hw: the image size to train at, by which small boxes are judged.

    Raises:
        ConfigError: `fix` holds something, lies in the data set, or is asked for in a quick check; or `out` is a file.
        DatasetError: there is nothing at the path, or `fix` is given and nothing can be repaired.
    """
    if fix is not None:
        if quick:
            raise ConfigError("A repair needs a look at every image; leave out quick=True.")
        check_destination(fix, data)
    if out is not None:
        check_folder(out)
    inspection = inspect(data, quick=quick)._replace(input_hw=input_hw)
    findings = examine(inspection, () if detect is None else suspected(inspection, detect))
    if out is not None:
        write_pages(out, findings, inspection)
    if fix is not None:
        write_repaired_copy(inspection, found_in(inspection), fix)
    return findings


def quick_findings(data: str | Path, loaded: LoadedData) -> Findings:
    """What can be found in the annotations alone, once they have been read for training.

    Args:
        data: the data set, as given.
        loaded: what was read.
    """
    return examine(inspect_quickly(data, loaded))


def found_in(inspection: Inspection) -> Iterator[tuple[str, Example]]:
    """Run the checks, and yield every single fault.

    Args:
        inspection: the data set; of a quick one, only `QUICK_CHECKS` are run.
    """
    forget_files()
    for check in QUICK_CHECKS if inspection.is_quick else CHECKS:
        yield from check(inspection)


def examine(inspection: Inspection, more: Iterable[tuple[str, Example]] = ()) -> Findings:
    """Run the checks, and sum up what they find.

    Args:
        inspection: the data set.
        more: what was found otherwise.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    kept: defaultdict[str, defaultdict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for code, example in chain(found_in(inspection), more):
        counts[code] += 1
        of_part = kept[code][example.part]
        if len(of_part) < MAX_EXAMPLES:
            of_part.append(example)
    findings = [
        Finding(
            code=code,
            title=CODES[code].title,
            severity=CODES[code].severity,
            count=count,
            examples=tuple(_spread(kept[code].values())),
            effect=CODES[code].effect,
            remedy=CODES[code].remedy,
        )
        for code, count in counts.items()
    ]
    reading = inspection.reading
    return Findings(
        data=inspection.data,
        is_readable=reading is not None,
        findings=tuple(sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.code))),
        notes=() if reading is None else (f"Data read as {reading.what}", *reading.notes),
        parts={part.name: counted for part in inspection.parts.values() if (counted := _counts(part)) is not None},
    )


def _spread(by_part: Iterable[list[Example]]) -> list[Example]:
    """At most `MAX_EXAMPLES` examples, from the parts by turns."""
    groups = list(by_part)
    turns = [example for number in range(MAX_EXAMPLES) for group in groups for example in group[number : number + 1]]
    return turns[:MAX_EXAMPLES]


def _counts(part: Part) -> PartCounts | None:
    document = part.document
    if document is None:
        return None
    classes = {document.categories[id_] for id_ in np.unique(document.category_ids).tolist()}
    return PartCounts(len(document.file_names), len(document.annotation_ids), len(classes))
