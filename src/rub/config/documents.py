"""YAML of anyone, read as plain data by the rules of YAML 1.2, with limits; and written so that it reads the same.

PyYAML follows YAML 1.1, where ``yes`` is true, ``010`` is 8, ``1:30`` is 90 and ``2026-01-02`` is a date. Here, as in
the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), they are text, 10, text and text. Merge keys
(``<<``) are kept from YAML 1.1, for suites that repeat themselves.
"""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import yaml

from rub.errors import RubError

LARGEST = 1 << 20  # bytes of a document
MOST = 50_000  # values of a document, aliases counted as often as they stand for something
DEEPEST = 64  # mappings and lists inside each other
LONGEST = 4 << 20  # characters of all values together, aliases counted likewise
INTEGERS = 1 << 63  # that parquet and JSON readers hold lie below it, either way

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


class _Refused(Exception):
    """What of a document is not read, and where."""

    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark is not None else what)


class _Reader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, no tags, each key once, and limits."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.deep_construct = True  # a merge key needs its mapping whole; nothing is deeper than the limit
        self.depth = 0
        self.seen = self.letters = 0
        self.sizes: dict[int, tuple[int, int, int]] = {}  # of a finished node: values, characters, depth

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if (tag := getattr(event, "tag", None)) not in (None, f"{_TAG}str"):
            said = tag.replace(_TAG, "!!")[:60]
            raise _Refused(f"the tag {said} is not read; write the plain value", event.start_mark)
        self.depth += 1
        before = (self.seen, self.letters)
        if self.depth > DEEPEST:
            raise _Refused(f"more than {DEEPEST} mappings and lists inside each other", event.start_mark)
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise _Refused(f"the alias *{event.anchor} stands inside what it names", event.start_mark)
            values, letters, deep = self.sizes[id(node)]
            self.seen, self.letters = self.seen + values, self.letters + letters
        else:
            inner = _inner(node)
            deep = 1 + max((self.sizes[id(item)][2] for item in inner), default=0)
            self.seen, self.letters = self.seen + 1, self.letters + (len(node.value) if not inner else 0)
            self.sizes[id(node)] = (self.seen - before[0], self.letters - before[1], deep)
        if self.depth + deep > DEEPEST:
            raise _Refused(f"more than {DEEPEST} mappings and lists inside each other", event.start_mark)
        if self.seen > MOST or self.letters > LONGEST:
            raise _Refused(f"stands for more than {MOST} values or {LONGEST >> 20} MiB of text", event.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused("a list or mapping as a key; should be text", key_node.start_mark)
            key, value = self.construct_object(key_node), self.construct_object(value_node)
            if key == "<<" and key_node.style is None:
                for item in value if isinstance(value, list) else [value]:  # the first of a list goes before the others
                    if not isinstance(item, dict):
                        raise _Refused("a merge key (<<) of what is no mapping", key_node.start_mark)
                    merged = {**item, **merged}
            elif key in own:
                raise _Refused(f"the key {str(key)[:60]!r} is there twice", key_node.start_mark)
            else:
                own[key] = value
        return {**merged, **own}

    def construct_scalar(self, node: Any) -> str:
        text: str = super().construct_scalar(node)
        try:  # JSON escapes write one character as two surrogates
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _Refused("half of a character (a lone surrogate), which no file can hold", node.start_mark) from None
        if found := _CONTROL.search(text):
            raise _Refused(f"a control character ({ord(found[0]):#04x}) in a text", node.start_mark)
        return text

    def integer(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        digits = text.lstrip("+-")
        base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
        made = int(text, base) if len(digits) <= 66 else INTEGERS
        if abs(made) >= INTEGERS:
            raise _Refused(f"a whole number of {len(digits)} digits; should fit 64 bits", node.start_mark)
        return made

    def real(self, node: yaml.ScalarNode) -> float:
        text = self.construct_scalar(node)
        made = float(re.sub(r"\.(?=[inIN])", "", text))
        if abs(made) == float("inf") and "n" not in text.lower():
            raise _Refused(f"{text[:40]} is too large for a number", node.start_mark)
        return made


def check_plain(path: Path) -> None:
    """Make sure that what is at a path, if anything, is a file or a folder: a pipe or a device may never end.

    Raises:
        RubError: it is neither.
    """
    with suppress(OSError):  # whoever reads it says why it cannot be
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise RubError(f"{path}: no plain file")


def is_number(text: str) -> bool:
    """Whether a text is a whole number as people write it; Python also reads 1_0, and digits of other alphabets.

    Example:
        >>> is_number("10"), is_number("1_0"), is_number("-1"), is_number("\u0661")
        (True, False, False, False)
    """
    return text.isascii() and text.isdecimal()


class _Writer(yaml.SafeDumper):
    """Quotes whatever text YAML 1.1 or 1.2 reads as something else."""


for _name, _pattern, _first in _CORE:
    _whole = re.compile(f"(?:{_pattern.pattern})$")
    _Reader.add_implicit_resolver(_TAG + _name, _whole, _first)
    _Writer.add_implicit_resolver(_TAG + _name, _whole, _first)
_Reader.add_constructor(f"{_TAG}int", _Reader.integer)
_Reader.add_constructor(f"{_TAG}float", _Reader.real)
_Reader.add_constructor(f"{_TAG}bool", lambda loader, node: node.value.lower() == "true")


def read_yaml(text: str, where: str) -> Any:
    """Plain data of a YAML document: mappings, lists, text, numbers, true, false and null.

    Refused are tags, keys that are there twice or are no plain values, and what is too large, too deep or
    holds characters that no file can; aliases are followed within the limits.

    Args:
        text: the document.
        where: what it is, the beginning of an error.

    Raises:
        RubError: no YAML, or one of these.

    Example:
        >>> read_yaml("{epochs: 010, name: yes, rate: 1e-3}", "suite")
        {'epochs': 10, 'name': 'yes', 'rate': 0.001}
    """
    if len(text) > LARGEST:
        raise RubError(f"{where}: {len(text)} characters of YAML; at most {LARGEST} are read")
    try:
        return yaml.load(text, _Reader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, _Refused) as error:
        raise RubError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    except (ValueError, ArithmeticError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise RubError(f"{where}: not valid YAML ({type(error).__name__})") from None


def read_yaml_file(path: Path, where: str, otherwise: str = "") -> Any:
    """Plain data of a YAML file, see `read_yaml`.

    Args:
        path: the file.
        where: what it is, the beginning of an error.
        otherwise: what would be right where it cannot be read.

    Raises:
        RubError: it cannot be read, is no plain file or too large, or `read_yaml` refuses it.
    """
    try:
        # without waiting for a writer, where it is a pipe
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise RubError(f"{where}: no plain file{otherwise}")
            content = stream.read(4 * LARGEST + 1)  # a character has 4 bytes at most
        text = content.decode()
    except (OSError, ValueError) as error:
        raise RubError(f"{where}: cannot be read ({' '.join(str(error).split())[:300]}){otherwise}") from None
    return read_yaml(text, where)


def write_yaml(data: Any, **style: Any) -> str:
    r"""Plain data as YAML that `read_yaml`, and readers of YAML 1.1, read the same; the order of keys is kept.

    Example:
        >>> write_yaml({"name": "1e3", "steps": 3})
        "name: '1e3'\nsteps: 3\n"
    """
    written: str = yaml.dump(data, Dumper=_Writer, sort_keys=False, **style)
    return written


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [item for pair in node.value for item in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
