"""Training on a share of the labels: which images a fraction of a data set consists of."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import numpy as np

from rtdetrv4.data.document import count_of
from rtdetrv4.data.records import RecordTable, Split


def take_fraction(split: Split, fraction: float, seed: int = 0) -> tuple[Split, str]:
    """Take a share of a split's images, which shows the classes in the proportions of the whole.

    The choice depends on the seed, the names of the images and their classes, not on the order in which they are
    listed. A smaller share is part of every larger one of the same seed.

    Args:
        split: all images.
        fraction: in (0, 1]; of n images round(fraction · n) are taken, but at least one.
        seed: of the choice.

    Returns:
        The images taken, in the order of the split, and what was done, as a sentence.
    """
    table = split.records
    assert isinstance(table, RecordTable), "splits are read as tables"
    count = max(round(fraction * len(table)), 1)
    chosen = table.subset(sorted(_order(table, seed)[:count]))
    note = f"{count} of {count_of(len(table), 'training image is', 'training images are')} used (data.fraction)"
    taken = split._replace(records=chosen, fingerprint=chosen.fingerprint(split.classes))
    return taken, note


def _order(table: RecordTable, seed: int) -> list[int]:
    """All images in an order of which every beginning has the classes in proportion.

    Each image belongs to the rarest class that it shows, and those without objects belong together. The j-th of the m
    images of such a group, shuffled, comes at j/m, the rarer class first: so a beginning as long as there are groups
    has an image of each, and every beginning has the same share of each, to within one image.
    """
    owners = np.repeat(np.arange(len(table)), np.diff(table.first_box))[~table.is_crowd]
    labels = table.labels[~table.is_crowd]
    num_classes = int(labels.max(initial=-1)) + 1
    presence = np.zeros((len(table), num_classes + 1), dtype=np.bool_)
    presence[owners, labels] = True
    presence[:, -1] = ~presence.any(axis=1)  # no objects
    counts = presence.sum(axis=0)
    groups = np.where(presence, counts, len(table) + 1).argmin(axis=1).tolist()

    def key(index: int) -> bytes:
        name = table.file_names[index].decode(errors="surrogatepass")
        text = f"{seed} {PurePosixPath(name).name}".encode(errors="surrogatepass")
        return hashlib.sha256(text).digest() + table.file_names[index]

    members: dict[int, list[int]] = {}
    for index in sorted(range(len(table)), key=key):
        members.setdefault(groups[index], []).append(index)
    places = {
        index: (rank / len(group), len(group), label)
        for label, group in members.items()
        for rank, index in enumerate(group)
    }
    return sorted(places, key=places.__getitem__)
