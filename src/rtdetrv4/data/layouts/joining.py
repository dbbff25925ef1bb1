"""Several annotation files as one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtdetrv4.data.document import Document, Origin, count_of, some_of
from rtdetrv4.data.faults import Faults


def joining_note(files: Sequence[str], split: str) -> str:
    """What is said before several files of a part are read."""
    return (
        f"{len(files)} files hold annotations for {split}: {some_of(files)}; they are joined, but any that lists "
        "images of a larger one is left out; to use one alone, give it as data"
    )


def join_documents(located: Sequence[tuple[Document, Path]], faults: Faults | None = None) -> tuple[Document, Path]:
    """Join the annotations of one part; images are numbered anew, and classes are matched by name.

    A document that lists images of a larger one is another version of it, and is left out.

    Args:
        located: the documents, each with the folder that its file names are relative to.
        faults: collects the documents that are left out.
    """
    root = Path(os.path.commonpath([folder for _, folder in located]))
    documents: list[Document] = []
    names: list[str] = []
    problems: list[str] = []
    for document, folder in sorted(located, key=lambda each: -len(each[0].annotation_ids)):
        own = [(folder / name).relative_to(root).as_posix() for name in document.file_names]
        if shared := set(own).intersection(names):
            problems.append(
                f"{document.path.name} left out: {count_of(len(shared), 'image', 'images')} of it (first: "
                f"{min(shared)}) are also in another file of this part, with at least as many boxes; give the file to "
                "use as data"
            )
            if faults is not None:
                faults.add(
                    "file left out", document.path, "file", 0, f"lists {len(shared)} images that another file lists too"
                )
            continue
        documents.append(document)
        names += own
    if len(documents) == 1:
        return documents[0]._replace(file_names=names, problems=(*problems, *documents[0].problems)), root
    ids = _shared_ids(documents)
    offsets = np.cumsum([0, *(len(document.file_names) for document in documents)])
    return documents[0]._replace(
        path=documents[0].path.parent,
        image_ids=np.arange(len(names)),
        file_names=names,
        sizes_hw=np.concatenate([document.sizes_hw for document in documents]),
        categories={id_: name for name, id_ in ids.items()},
        parents=frozenset().union(*(document.parents for document in documents)),
        annotation_ids=[id_ for document in documents for id_ in document.annotation_ids],
        image_index=np.concatenate([d.image_index + offset for d, offset in zip(documents, offsets, strict=False)]),
        category_ids=np.concatenate(
            [
                np.array([ids[document.categories[id_]] for id_ in document.category_ids.tolist()], dtype=np.int64)
                for document in documents
            ]
        ),
        boxes_xywh_px=np.concatenate([document.boxes_xywh_px for document in documents]),
        is_crowd=np.concatenate([document.is_crowd for document in documents]),
        areas=np.concatenate([document.areas for document in documents]),
        problems=(*problems, *(problem for document in documents for problem in document.problems)),
        origin=_joined(documents),
    ), root


def _joined(documents: Sequence[Document]) -> Origin | None:
    origins = [document.origin for document in documents if document.origin is not None]
    if len(origins) < len(documents):
        return None
    return Origin(
        files=tuple(file for origin in origins for file in origin.files),
        unit=origins[0].unit,
        numbers=np.concatenate([origin.numbers for origin in origins]),
        forms=np.concatenate([origin.forms for origin in origins]),
    )


def _shared_ids(documents: Sequence[Document]) -> dict[str, int]:
    """An id for each class name: the annotated ones if the documents agree, or else 0, 1, … in their order."""
    given: dict[str, int] = {}
    for document in documents:
        for id_, name in sorted(document.categories.items()):
            given.setdefault(name, id_)
    agree = all(given[name] == id_ for document in documents for id_, name in document.categories.items())
    if agree and len(set(given.values())) == len(given):
        return given
    return {name: number for number, name in enumerate(given)}
