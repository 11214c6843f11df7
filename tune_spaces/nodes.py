"""YAML with line numbers: what the readers of spaces and of studies share. Every error names file and line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from efafnet.platform.yaml_text import _Loader as Loader
from efafnet.platform.yaml_text import problem_of, read_yaml_file
from efafnet.tune_spaces.space import SpaceError

_PRODUCT = re.compile(r"(?:(\d+\.?\d*|\.\d+) ?\* ?)?([a-z_]+)")
"""A number that refers to a name: ``num_joints``, ``0.6*epochs``."""
_SIGIL = "="
"""Before such a number wherever text may stand as well: ``=num_joints``."""


def yaml_names(folder: Traversable) -> list[str]:
    """Names of the YAML files in a folder, without their ending."""
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_file(path: str, what: str, known: Sequence[str]) -> str:
    """The text of a YAML file that is not among the ``known`` names; ``what`` says in messages what it should hold.

    Raises:
        SpaceError: not the name of a YAML file, or it cannot be read.
    """
    if not path.endswith((".yaml", ".yml")):
        raise SpaceError(f"no {what} {path!r}; there are {', '.join(known)}, or give the path of a .yaml file")
    try:
        return read_yaml_file(Path(path))
    except (OSError, ValueError) as error:
        raise SpaceError(f"the {what} {path} cannot be read: {error}") from error


class NodeReader:
    """Reads one file's nodes.

    Args:
        source: the file, as messages name it.
        names: what numbers may refer to.
    """

    def __init__(self, source: str, names: Mapping[str, float]) -> None:
        self.source = source
        self.names = names

    def compose(self, text: str) -> yaml.Node | None:
        """The root of a document."""
        try:
            return yaml.compose(text, Loader=Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise self.error(mark.line + 1 if mark else 1, f"not YAML: {problem_of(error)}") from error

    def pairs(self, node: yaml.Node | None, expected: str) -> list[tuple[str, tuple[int, yaml.Node]]]:
        """The keys of a mapping with their lines; YAML itself would silently take the last of two equal keys."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node.start_mark.line + 1 if node else 1, expected)
        pairs: dict[str, tuple[int, yaml.Node]] = {}
        for name, inner in node.value:
            key, line = str(self.plain(name)), name.start_mark.line + 1
            if key in pairs:
                raise self.error(line, f"{key} stands here twice (first in line {pairs[key][0]})")
            pairs[key] = (line, inner)
        return list(pairs.items())

    def plain(self, node: yaml.Node) -> Any:
        """What stands there, as YAML reads it: keys, labels, names and prose."""
        loader = Loader("")
        try:
            return loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self.error(node.start_mark.line + 1, f"cannot be read: {problem_of(error)}") from error
        finally:
            loader.dispose()

    def value(self, node: yaml.Node) -> Any:
        """A setting's value, with numbers where ``=`` refers to names; other text stays."""
        return self._resolved(self.plain(node), node.start_mark.line + 1)

    def _resolved(self, value: Any, line: int) -> Any:
        if isinstance(value, list):
            return [self._resolved(item, line) for item in value]
        if isinstance(value, dict):
            return {key: self._resolved(item, line) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        if value.startswith(_SIGIL):
            number = self.named(value)
            if number is None:
                raise self.error(line, f"{value!r} refers to no known name; there are {self._known()}")
            return number
        if "*" in value and self.named(value) is not None:
            raise self.error(line, f"{value!r} is text here; for the number write ={value}")
        return value

    def named(self, text: str) -> float | None:
        """The number that ``num_joints`` or ``0.6*epochs`` stands for, with or without the sigil; None for other text.

        A share of a whole number is rounded down.
        """
        match = _PRODUCT.fullmatch(text.removeprefix(_SIGIL).strip())
        if not match or match[2] not in self.names:
            return None
        known, number = self.names[match[2]], float(match[1] or 1) * self.names[match[2]]
        return math.floor(number + 1e-9) if isinstance(known, int) else round(number, 6)

    def _known(self) -> str:
        return ", ".join(self.names) or "none here"

    def error(self, line: int, message: str) -> SpaceError:
        """An error that names file and line."""
        return SpaceError(f"{self.source}:{line}: {message}")
