"""The files of a data set, listed once, and found by names that were written on another machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from rtdetrv4.errors import DatasetError
from rtdetrv4.runtime.sources import IMAGE_SUFFIXES

TOOL_FOLDERS = frozenset({"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "__pycache__"})
"""Besides hidden folders, those in which tools and systems keep copies and thumbnails."""
MAX_FILES = 20_000_000
"""Twice as many as the images of Open Images with a label file each."""
MAX_DEPTH = 100
"""Folders inside each other; what is below is left out."""
FEW = 50
"""Files of one name; among more, the one that is meant is looked up by its folders."""
MAX_VISITS = 200
"""Ways to the same folder through links; further ones are left out."""
SPLIT_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trainset"),
    "val": ("valid", "val", "validation", "dev", "eval"),
    "test": ("test", "testing", "testset"),
}
"""What the parts of a data set are called in the names of files and folders."""
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_WORD = re.compile(rf"(?<![^\W\d_])({'|'.join(sorted(_SPLIT_OF_WORD, key=len, reverse=True))})(?![^\W\d_])", re.I)
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")


class Tree:
    """All files below a folder except hidden ones, as paths relative to it with forward slashes.

    Links are followed. Whatever `find` and `nearest` return lies below the folder, so a name in an annotation file
    cannot lead out of it.

    Args:
        root: the folder.

    Raises:
        DatasetError: it has more than `MAX_FILES` files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        files = tuple(itertools.islice(_walk(os.fspath(root), "", _above(root), Counter()), MAX_FILES + 1))
        if len(files) > MAX_FILES:
            raise DatasetError(f"{root} has more than {MAX_FILES} files; give the folder of the data set alone")
        self.files: tuple[str, ...] = tuple(sorted(files))

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The image files."""
        return tuple(self.ending(*IMAGE_SUFFIXES))

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """Every folder with files below it, the outermost first; "" is the root."""
        direct = set(map(folder_of, self.files))
        folders = {str(parent) for folder in direct for parent in PurePosixPath(folder, "file").parents}
        return tuple(sorted(("" if folder == "." else folder for folder in folders), key=lambda f: (f.count("/"), f)))

    @cached_property
    def present(self) -> frozenset[str]:
        """`files` as a set."""
        return frozenset(self.files)

    @cached_property
    def _splits(self) -> frozenset[str | None]:
        """The parts that folders are named after."""
        return frozenset(map(split_of, self.folders))

    @cached_property
    def _by_spelling(self) -> dict[str, str]:
        return {spelling(file): file for file in reversed((*self.folders, *self.files))}

    @cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        return _grouped(self.files, suffix_of)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped(self.files, lambda file: spelling(name_of(file)))

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped(self.images, lambda file: spelling(stem_of(file)))

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """Files that share a name with many by each end of their path, `folder/name` and, of images, `folder//stem`.

        Frames of videos are called alike in thousands of folders, and to look at each for each would take hours.
        """
        ends: defaultdict[str, list[str]] = defaultdict(list)
        keys_of: defaultdict[str, list[str]] = defaultdict(list)
        for groups, slashes in ((self._by_name, "/"), (self._by_stem, "//")):
            for name, files in groups.items():
                for file in files if len(files) > FEW else ():
                    keys_of[file].append(slashes + name)
        for file, keys in keys_of.items():
            folders = [spelling(folder) for folder in file.split("/")[:-1]]
            for start in range(len(folders)):
                end = "/".join(folders[start:])
                for key in keys:
                    ends[end + key].append(file)
        return dict(ends)

    def ending(self, *suffixes: str) -> list[str]:
        """The files with one of the suffixes, which are in lower case."""
        return sorted(file for suffix in suffixes for file in self._by_suffix.get(suffix, ()))

    def named(self, name: str) -> list[str]:
        """The files called so, in any folder."""
        return self._by_name.get(spelling(name), [])

    def path(self, file: str) -> Path:
        """The path of a file or folder of the tree."""
        return self.root / file

    def find(self, name: str) -> str | None:
        """The file or folder at a path relative to the root, whatever its case and Unicode form; "" is the root."""
        clean = os.path.normpath(name.replace("\\", "/")).replace("\\", "/")
        clean = "" if clean == "." else clean
        return clean if clean in self.present else self._by_spelling.get(spelling(clean))

    def find_image(self, name: str) -> str | None:
        """The image file at a path relative to the root, as `find`."""
        file = self.find(name.lstrip("/"))
        return file if file is not None and suffix_of(file) in IMAGE_SUFFIXES else None

    def nearest(
        self,
        name: str,
        prefer: Sequence[str] = (),
        suffixes: Iterable[str] = IMAGE_SUFFIXES,
        split: str | None = None,
    ) -> str | None:
        """The file that `name` means, a path that may have been written for another place or machine.

        Of the files called so, it is the one whose folders agree with the end of the path; a file of another part of
        the data set never is.

        Args:
            name: a path of any kind: absolute, with backslashes, of a server, or with %20 for a space.
            prefer: folders to take the file from if several agree equally well, the likeliest first.
            suffixes: what the name of the file may end with, in lower case.
            split: the part of the data set that the file belongs to, unless the path says it.

        Raises:
            DatasetError: several files fit equally well.
        """
        parts = parts_of(name)
        if not parts:
            return None
        candidates: list[str] = []
        key = ""
        for base in (parts[-1], unquote(parts[-1]), _UPLOAD_PREFIX.sub("", parts[-1], count=1)):
            if not candidates:
                candidates, key = self._by_name.get(spelling(base), []), f"/{spelling(base)}"
        for stem in (parts[-1], stem_of(parts[-1])):
            if not candidates:
                candidates, key = self._by_stem.get(spelling(stem), []), f"//{spelling(stem)}"
        split = split_of("/".join(parts[:-1])) or split
        allowed = {None, split} if split and split in self._splits else {None, *SPLIT_WORDS}

        def fit(files: Iterable[str]) -> list[str]:
            return [file for file in files if suffix_of(file) in suffixes and split_of(folder_of(file)) in allowed]

        folders = [spelling(part) for part in parts[:-1]] if len(candidates) > FEW else []
        ends = ("/".join(folders[start:]) for start in range(len(folders)))  # the longest that agrees decides
        fitting = next(filter(None, (fit(self._by_end.get(end + key, ())) for end in ends)), None) or fit(candidates)
        if not fitting:
            return None

        def rank(file: str) -> tuple[int, int]:
            inside = (i for i, folder in enumerate(prefer) if not folder or file.startswith(f"{folder}/"))
            return -_agreement(parts, file.split("/")), next(inside, len(prefer))

        if len(fitting) == 1:
            return fitting[0]
        ranked = sorted(fitting, key=rank)
        if rank(ranked[0]) == rank(ranked[1]):
            raise DatasetError(
                f"{name} may be {self.path(ranked[0])} or {self.path(ranked[1])}; give them different names, or write "
                "paths relative to the folder of the data set"
            )
        return ranked[0]


@lru_cache(maxsize=2**14)
def split_of(path: str) -> str | None:
    """The part of a data set that a path says it belongs to, by its last component that names one.

    >>> split_of("annotations/instances_train2017.json"), split_of("Validation/images/restraint.jpg")
    ('train', 'val')
    """
    for component in reversed(path.split("/")):
        if found := _WORD.search(component):
            return _SPLIT_OF_WORD[found.group(1).lower()]
    return None


def spelling(name: str) -> str:
    """A name without what differs between file systems: case, Unicode form, and bytes that are not UTF-8."""
    if not name.isascii():
        with contextlib.suppress(UnicodeEncodeError):  # surrogates that stand for no byte
            data = os.fsencode(name)
            name = name if _is_utf8(data) else data.decode("latin-1")
    return unicodedata.normalize("NFC", name).casefold()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def parts_of(name: str) -> list[str]:
    """The components of a path of any system or server that say something about its end."""
    # Label Studio serves local files as /data/local-files/?d=folder/a.jpg.
    return [part for part in re.split(r"[/\\]|\?d=", name) if part not in {"", ".", ".."} and not part.endswith(":")]


# Data sets have hundreds of thousands of files, for which pathlib would take minutes.


def name_of(file: str) -> str:
    """The last component of a path with forward slashes."""
    return file.rpartition("/")[2]


def stem_of(file: str) -> str:
    """The last component of a path without its suffix."""
    name = name_of(file)
    return name.rpartition(".")[0] or name


def suffix_of(file: str) -> str:
    """The suffix of a file name in lower case."""
    stem, dot, suffix = name_of(file).rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def folder_of(file: str) -> str:
    """The path without its last component; "" for a file at the root."""
    return file.rpartition("/")[0]


def _agreement(parts: Sequence[str], file: Sequence[str]) -> int:
    """How many components of two paths agree, from the end of their folders."""
    agreeing = 0
    for one, other in zip(parts[-2::-1], file[-2::-1], strict=False):
        if spelling(one) != spelling(other):
            break
        agreeing += 1
    return agreeing


def _grouped(files: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        groups[key(file)].append(file)
    return groups


def _walk(
    folder: str,
    prefix: str,
    above: tuple[tuple[int, int], ...],
    visits: Counter[tuple[int, int]],
    is_linked: bool = False,
) -> Iterator[str]:
    try:
        identity = _identity(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # a folder that may not be read holds nothing that can be used
        return
    visits[identity] += is_linked
    # A link to a folder above it, or one of links that multiply: two in each folder to the next are 2^n paths.
    if identity in above or (is_linked and visits[identity] > MAX_VISITS) or prefix.count("/") > MAX_DEPTH:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in TOOL_FOLDERS:
            continue
        with contextlib.suppress(OSError):  # what may not be looked at cannot be used, either
            if entry.is_file():
                yield f"{prefix}{entry.name}"
                continue
            if not entry.is_dir():
                continue
        inside = (*above, identity)
        yield from _walk(entry.path, f"{prefix}{entry.name}/", inside, visits, is_linked or entry.is_symlink())


def _above(root: Path) -> tuple[tuple[int, int], ...]:
    """The folders that the root is in."""
    try:
        return tuple(_identity(os.fspath(folder)) for folder in root.resolve().parents)
    except OSError:
        return ()


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
