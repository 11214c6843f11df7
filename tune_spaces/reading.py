"""Reads search spaces from their YAML files; every error names file and line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from efafnet.tune_spaces.inline import SOURCE, is_range, to_yaml
from efafnet.tune_spaces.nodes import NodeReader, read_file, yaml_names
from efafnet.tune_spaces.space import Choice, Entry, Fixed, Option, Range, Scalar, Settings, Space, walk


def available_spaces() -> list[str]:
    """Names of the spaces that come with the project."""
    return yaml_names(resources.files("efafnet.tune_spaces"))


def load_space(name_or_path: str, names: Mapping[str, float] | None = None) -> Space:
    """Read a space by its name (one that comes with the project) or from a YAML file.

    Args:
        name_or_path: a name such as ``ohkm``, the path of a file, or ranges as on the command line, one a line.
        names: what numbers in the file may refer to, for example ``{"num_joints": 17, "epochs": 150}``: bounds write
            ``num_joints`` or ``0.6*epochs``, values ``=num_joints`` or ``=0.6*epochs``.

    Raises:
        SpaceError: an unknown name, an unreadable file, or a file that is no search space.
    """
    if is_range(name_or_path.partition("\n")[0]):
        return parse_space(to_yaml(name_or_path.splitlines()), SOURCE, names)
    if name_or_path in available_spaces():
        found = resources.files("efafnet.tune_spaces") / f"{name_or_path}.yaml"
        return parse_space(found.read_text(encoding="utf-8"), f"tune_spaces/{name_or_path}.yaml", names)
    text = read_file(name_or_path, "search space", available_spaces())
    return parse_space(text, name_or_path, names)


def parse_space(text: str, source: str, names: Mapping[str, float] | None = None) -> Space:
    """Read a space from its text; ``source`` names the file in messages.

    Raises:
        SpaceError: not YAML, or not a search space; names the file and the line.
    """
    return _Reader(source, names or {}).space(text)


class _Reader(NodeReader):
    """Turns YAML into a space."""

    def space(self, text: str) -> Space:
        root = self.compose(text)
        sections = dict(self.pairs(root, "a search space is a mapping with the sections about, search and start"))
        for name, (line, _) in sections.items():
            if name not in ("about", "search", "start"):
                raise self.error(line, f"unknown section {name!r}; a space has about, search and start")
        if "search" not in sections:
            raise self.error(1, "the section search is missing: it lists the keys to search and their values")
        entries = self.entries(sections["search"][1], ())
        about = str(self.plain(sections["about"][1])) if "about" in sections else ""
        start = tuple(self.start(sections["start"][1])) if "start" in sections else ()
        space = Space(Path(self.source).stem, self.source, text, about, _unique_names(entries), start)
        if not space.searched:
            raise self.error(sections["search"][0], "nothing is searched: every key has one fixed value")
        return space

    def entries(self, node: yaml.Node, taken: tuple[str, ...]) -> tuple[Entry, ...]:
        entries: list[Entry] = []
        pairs = self.pairs(node, "expected `key: values` lines")
        here = taken + tuple(key for key, _ in pairs)
        for key, (line, value) in pairs:
            if key in taken:
                raise self.error(line, f"{key} is set here and outside this option; a key has one place on a path")
            entry = Entry(key, line, self.domain(key, line, value, here), key)
            for other in walk([entry]):
                if any(other.key == earlier.key for earlier in walk(entries)):
                    raise self.error(other.line, f"{other.key} is set by two choices at once; give it one place")
            entries.append(entry)
        return tuple(entries)

    def domain(self, key: str, line: int, node: yaml.Node, taken: tuple[str, ...]) -> Fixed | Range | Choice:
        if not isinstance(node, yaml.MappingNode):
            return Fixed(self.value(node))
        parts = dict(self.pairs(node, ""))
        kinds = [kind for kind in ("float", "int", "choice") if kind in parts]
        if len(kinds) != 1:
            raise self.error(
                line,
                f"{key}: expected one of {{float: [low, high]}}, {{int: [low, high]}}, {{choice: [...]}}, or a plain "
                f"value; got the keys {', '.join(parts) or 'none'}",
            )
        if kinds[0] == "choice":
            self.only(key, parts, ("choice",))
            return self.choice(key, *parts["choice"], taken)
        self.only(key, parts, (kinds[0], "log", "step", "around"))
        return self.range(key, kinds[0] == "int", parts)

    def only(self, key: str, parts: Mapping[str, tuple[int, yaml.Node]], allowed: tuple[str, ...]) -> None:
        for name, (line, _) in parts.items():
            if name not in allowed:
                raise self.error(line, f"{key}: unknown word {name!r}; allowed here: {', '.join(allowed)}")

    def range(self, key: str, integer: bool, parts: Mapping[str, tuple[int, yaml.Node]]) -> Range:
        line, node = parts["int" if integer else "float"]
        bounds = self.plain(node)
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise self.error(line, f"{key}: a range is [low, high]; got {bounds!r}")
        low, high = (self.number(key, line, bound, integer) for bound in bounds)
        log = self.plain(parts["log"][1]) if "log" in parts else False
        step, around = (
            self.number(key, parts[word][0], self.plain(parts[word][1]), integer and not (log and word == "step"))
            if word in parts else None
            for word in ("step", "around")
        )  # fmt: skip
        if not isinstance(log, bool):
            raise self.error(line, f"{key}: log is true or false; got {log!r}")
        if low > high:
            raise self.error(line, f"{key}: the range [{low}, {high}] is empty; write the smaller number first")
        if log and low <= 0:
            raise self.error(line, f"{key}: a log range starts above 0; got [{low}, {high}]")
        if step is not None and step <= (1 if log else 0):
            rule = "a log range's step is the factor from value to value, above 1" if log else "step must be positive"
            raise self.error(line, f"{key}: {rule}; got {step}")
        if around is not None and (step is not None or not low < around < high):
            raise self.error(line, f"{key}: around lies between the bounds, of a range without step; got {around}")
        return Range(low, high, integer, log, step, around)

    def number(self, key: str, line: int, value: Any, integer: bool) -> float:
        if isinstance(value, str):
            named = self.named(value)
            if named is None:
                raise self.error(
                    line, f"{key}: {value!r} is neither a number nor made of a known name ({self._known()})"
                )
            value = named
        bad = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
        if bad or (integer and value != int(value)):
            raise self.error(line, f"{key}: expected {'an integer' if integer else 'a number'}; got {value!r}")
        return int(value) if integer else float(value)

    def choice(self, key: str, line: int, node: yaml.Node, taken: tuple[str, ...]) -> Choice:
        if isinstance(node, yaml.MappingNode):
            options = [self.option(name, inner, taken) for name, inner in node.value]
        elif isinstance(node, yaml.SequenceNode):
            options = [Option(_label(value), value) for value in self.value(node)]
        else:
            raise self.error(line, f"{key}: choice takes a list of values, or a mapping of options to their settings")
        labels = [(type(option.label), option.label) for option in options]
        if not options or len(set(labels)) != len(labels):
            raise self.error(line, f"{key}: a choice needs different options; got {[o.label for o in options]}")
        return Choice(tuple(options))

    def option(self, name: yaml.Node, inner: yaml.Node, taken: tuple[str, ...]) -> Option:
        value = self.plain(name)
        empty = inner.tag == "tag:yaml.org,2002:null"
        return Option(_label(value), value, () if empty else self.entries(inner, taken))

    def start(self, node: yaml.Node) -> Iterator[tuple[int, Settings]]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node.start_mark.line + 1, "start is a list of settings, each a mapping of keys to values")
        for item in node.value:
            pairs = self.pairs(item, "an item of start is a mapping of keys to values")
            yield item.start_mark.line + 1, {key: self.value(inner) for key, (_, inner) in pairs}


def _label(value: Any) -> Scalar:
    """What the study stores for an option: studies keep plain values only, so a list becomes its text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _unique_names(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Name the parameters by their keys; where options give one key other values than the first, the option is added.

    A study keeps one range per name for its whole life, and the sampler learns from all trials that have the name.
    """
    first: dict[str, Range | Choice] = {}
    for entry in walk(entries):
        if not isinstance(entry.domain, Fixed):
            first.setdefault(entry.key, entry.domain)
    return _named(entries, first, "")


def _named(entries: Sequence[Entry], first: Mapping[str, Range | Choice], path: str) -> tuple[Entry, ...]:
    named: list[Entry] = []
    for entry in entries:
        domain = entry.domain
        name = entry.key if domain == first.get(entry.key) else entry.key + path
        if isinstance(domain, Choice):
            options = [
                Option(o.label, o.value, _named(o.entries, first, f"{path}[{entry.key}={o.label}]"))
                for o in domain.options
            ]
            domain = Choice(tuple(options))
        named.append(Entry(entry.key, entry.line, domain, name))
    return tuple(named)
