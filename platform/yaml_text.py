"""YAML as people mean it: the 1.2 core schema, because YAML 1.1 reads 1e-3 as text, no as false and 1:30 as ninety."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

LARGEST_BYTES = 10_000_000
"""Of a file that may hold settings."""


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 scalars and refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own interface)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes block style; quotes whatever a 1.1 or a 1.2 reader would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (PyYAML's own interface)
        """Write equal values out in full instead of as references."""
        return True


_SCALARS: tuple[tuple[str, str, list[str]], ...] = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("tag:yaml.org,2002:float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
"""Tag, pattern and possible first characters of every scalar that is not text (YAML 1.2.2, section 10.3.2)."""

for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


MAX_VALUES = 100_000
"""Values of a document with its aliases written out: nine aliases of nine each, nine deep, would be 400 million."""
_INT64 = 1 << 63


def _refused(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    # Python refuses to read thousands of digits, and nothing here counts beyond 64 bits.
    if len(text) > 20 or not -_INT64 <= (value := int(text)) < _INT64:
        raise _refused(f"number {text[:20]}{'…' * (len(text) > 20)} does not fit into 64 bits", node)
    return value


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text, value = str(loader.construct_scalar(node)), loader.construct_yaml_float(node)
    if math.isinf(value) and "inf" not in text.lower():
        raise _refused(f"number {text[:20]} is too large", node)
    return float(value)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml_file(path: Path) -> str:
    """The text of a YAML file, which may be a pipe.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8 text, or larger than any settings are, as a device is that never ends.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"it holds more than {LARGEST_BYTES // 10**6} MB, which no settings are")
    return content.decode()


def load_yaml(text: str) -> Any:
    """Parse one YAML document of plain values.

    Raises:
        yaml.YAMLError: it is not one, is nested too deep, or would grow beyond measure.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    finally:
        loader.dispose()


def _measure(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values of a node with its aliases written out; each is looked at once, however often it is named."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise _refused("a value that holds itself", node)
        return sizes[id(node)]
    sizes[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    sizes[id(node)] = 1 + sum(_measure(each, sizes) for each in inner)
    if sizes[id(node)] > MAX_VALUES:
        raise _refused(f"with its aliases written out it holds more than {MAX_VALUES} values", node)
    return sizes[id(node)]


def dump_yaml(value: Any) -> str:
    """Return plain values as YAML that ``load_yaml`` reads back equal; keys keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))


def problem_of(error: yaml.YAMLError) -> str:
    """Return what a YAML error complains about, on one line."""
    return " ".join(str(getattr(error, "problem", None) or error).split())
