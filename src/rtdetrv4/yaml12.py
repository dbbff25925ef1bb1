"""YAML 1.2, for recipes and data set descriptions: `off`, `no` and `1:30` are text, and `1e-4` is a number.

PyYAML reads YAML 1.1, in which `off` and `no` are booleans, `012` and `1:30` are numbers in other bases, and `1e-4` is
text.

What a stranger wrote is read as plain values only, in a time that its length bounds: no tags that make objects, no
aliases that grow to billions of values (a file of a kilobyte can), no nesting without end, no key twice.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)


MAX_LENGTH = 1_000_000
"""Characters of a document: twice the names of all 21,841 classes of ImageNet. PyYAML reads some 100,000 a second."""
MAX_DEPTH = 50
"""Lists and mappings inside each other."""
MAX_VALUES = 200_000
"""Values of a document, those that an alias repeats counted each time."""
_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    """Reads values that JSON has, too."""

    yaml_implicit_resolvers: ClassVar = {}
    yaml_constructors: ClassVar = {
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _TAGS
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, int] = {}
        """Values in each node that has been read to its end."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - PyYAML's name
        self._require_depth(self.flow_level)
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        self._require_depth(len(self.indents))
        return super().add_indent(column)

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        node: Any = super().compose_node(parent, index)
        if node not in self._sizes:
            if node.end_mark is None:
                raise ComposerError(None, None, "an alias to what it is a part of", mark)
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            parts = itertools.chain.from_iterable(each if isinstance(each, tuple) else (each,) for each in children)
            self._sizes[node] = 1 + sum(map(self._sizes.__getitem__, parts))
        if self._sizes[node] > MAX_VALUES:
            what = f"more than {MAX_VALUES} values, those that aliases repeat counted each time"
            raise ComposerError(None, None, what, mark)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen: set[Any] = set()
            for key, _ in node.value:
                value = self.construct_object(key, deep=True)
                if value in seen:
                    raise ConstructorError(None, None, f"the key {value!r} twice", key.start_mark)
                seen.add(value)
        return mapping

    def _require_depth(self, depth: int) -> None:
        if depth >= MAX_DEPTH:
            what = f"more than {MAX_DEPTH} lists and mappings inside each other"
            raise ScannerError(None, None, what, self.get_mark())


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


def load_yaml(text: str) -> Any:
    """Parse a YAML document into plain Python values.

    Raises:
        yaml.YAMLError: the text is not valid YAML, or more than a description of anything needs.
    """
    if len(text) > MAX_LENGTH:
        raise yaml.YAMLError(f"{len(text)} characters, expected at most {MAX_LENGTH}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it is safe, being one of SafeLoader
    except (ValueError, LookupError) as error:  # such as of !!float x, or of a number of 5,000 digits
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


def dump_yaml(content: Any) -> str:
    """A YAML document that `load_yaml`, and readers of YAML 1.1, read as `content`."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
