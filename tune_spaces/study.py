"""Studies: settings to compare with repeated runs, as small YAML files; the paper's tables are such files.

A file in ``tune_spaces/studies`` (or anywhere) reads::

    about: one sentence on what is compared, and what the paper measured on
    baseline: name of the row that the others are compared with
    settings: {loss.kind: ohkm}                # of every row; any key of the training configuration
    rows:
      - name: as the table prints it
        network: sbn_r50_256x192               # a named configuration (`efafnet models`): network, input, target, loss
        settings: {loss.hard_joints: 8}        # on top of it
        paper: 72.8                            # the figure the paper prints, in percent
        paper_params_m: 37.0                   # its parameters in millions
        note: what a reader of the table must know
        missing: why this row cannot be run    # instead of network and settings
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from efafnet.models.variants import VARIANTS
from efafnet.tune_spaces.nodes import NodeReader, read_file, yaml_names
from efafnet.tune_spaces.space import Entry, Fixed, Settings

_ROW = ("name", "network", "settings", "paper", "paper_params_m", "note", "missing")


@dataclass(frozen=True)
class StudyRow:
    """One row of a study."""

    name: str
    line: int
    """Line of its file, for messages."""
    network: str | None = None
    """Named configuration that it starts from; None for the preset's own network."""
    entries: tuple[Entry, ...] = ()
    """Its settings, those of the whole study included."""
    paper: float | None = None
    """The paper's figure, percent."""
    paper_params_m: float | None = None
    """The paper's count of parameters, millions."""
    note: str = ""
    missing: str = ""
    """Why it cannot be run; empty for a row that can."""

    @property
    def settings(self) -> Settings:
        """Its settings by dotted key."""
        return {entry.key: entry.domain.value for entry in self.entries if isinstance(entry.domain, Fixed)}

    @property
    def key(self) -> str:
        """Its name as part of a directory's name."""
        return slug(self.name)


@dataclass(frozen=True)
class Study:
    """Rows to compare. ``source`` is the file's path for messages, ``text`` its content."""

    name: str
    source: str
    text: str
    about: str
    baseline: str
    rows: tuple[StudyRow, ...]


def slug(name: str) -> str:
    """A name in small letters, digits and dashes: ``SBN [60]+FAM`` is ``sbn-60-fam``."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower())).strip(".") or "row"


def available_studies() -> list[str]:
    """Names of the studies that come with the project."""
    return yaml_names(resources.files("efafnet.tune_spaces") / "studies")


def load_study(name_or_path: str, names: Mapping[str, float] | None = None) -> Study:
    """Read a study by its name (one that comes with the project) or from a YAML file.

    Args:
        name_or_path: a name such as ``table_x``, or the path of a file.
        names: what numbers in the file may refer to, for example ``{"num_joints": 17}``.

    Raises:
        SpaceError: an unknown name, an unreadable file, or a file that is no study; names the file and the line.
    """
    text, source = find_study(name_or_path)
    return parse_study(text, source, names)


def find_study(name_or_path: str) -> tuple[str, str]:
    """The text of a study and its file, as messages name it. Raises SpaceError: there is none, or it is unreadable."""
    if name_or_path in available_studies():
        found = resources.files("efafnet.tune_spaces") / "studies" / f"{name_or_path}.yaml"
        return found.read_text(encoding="utf-8"), f"tune_spaces/studies/{name_or_path}.yaml"
    return read_file(name_or_path, "study", available_studies()), name_or_path


def parse_study(text: str, source: str, names: Mapping[str, float] | None = None) -> Study:
    """Read a study from its text; ``source`` names the file in messages. Raises SpaceError as ``load_study``."""
    return _StudyReader(source, names or {}).study(text)


class _StudyReader(NodeReader):
    """Turns YAML into a study."""

    def study(self, text: str) -> Study:
        expected = "a study is a mapping with about, baseline, settings and rows"
        sections = dict(self.pairs(self.compose(text), expected))
        self.known(sections, ("about", "baseline", "settings", "rows"), "section")
        for name in ("about", "baseline", "rows"):
            if name not in sections:
                raise self.error(1, f"{name} is missing; {expected}")
        shared = self.entries(sections["settings"][1]) if "settings" in sections else {}
        line, node = sections["rows"]
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(line, "rows is a list, each item a mapping with a name")
        rows = tuple(self.row(item, shared) for item in node.value)
        self.unique(rows)
        baseline = str(self.plain(sections["baseline"][1]))
        self.runnable(sections["baseline"][0], baseline, rows)
        about = str(self.plain(sections["about"][1]))
        return Study(Path(self.source).stem, self.source, text, about, baseline, rows)

    def known(self, parts: Mapping[str, tuple[int, yaml.Node]], allowed: tuple[str, ...], what: str) -> None:
        for name, (line, _) in parts.items():
            if name not in allowed:
                raise self.error(line, f"unknown {what} {name!r}; allowed: {', '.join(allowed)}")

    def row(self, node: yaml.Node, shared: Mapping[str, Entry]) -> StudyRow:
        line = node.start_mark.line + 1
        parts = dict(self.pairs(node, "an item of rows is a mapping with a name"))
        self.known(parts, _ROW, "word of a row")
        if "name" not in parts:
            raise self.error(line, "a row needs a name")
        own = self.entries(parts["settings"][1]) if "settings" in parts else {}
        missing = self.text(parts, "missing")
        if missing and (own or "network" in parts):
            raise self.error(line, "a row is either missing or has a network and settings")
        return StudyRow(
            name=self.text(parts, "name"),
            line=line,
            network=self.network(*parts["network"]) if "network" in parts else None,
            entries=() if missing else tuple({**shared, **own}.values()),
            paper=self.number(parts, "paper"),
            paper_params_m=self.number(parts, "paper_params_m"),
            note=self.text(parts, "note"),
            missing=missing,
        )

    def entries(self, node: yaml.Node) -> dict[str, Entry]:
        pairs = self.pairs(node, "settings are `key: value` lines with the dotted keys of the training configuration")
        return {key: Entry(key, line, Fixed(self.value(value)), key) for key, (line, value) in pairs}

    def network(self, line: int, node: yaml.Node) -> str:
        name = str(self.plain(node))
        if name not in VARIANTS:
            close = difflib.get_close_matches(name, VARIANTS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`efafnet models` lists them"
            raise self.error(line, f"no network is called {name!r}; {hint}")
        return name

    def text(self, parts: Mapping[str, tuple[int, yaml.Node]], name: str) -> str:
        return str(self.plain(parts[name][1])) if name in parts else ""

    def number(self, parts: Mapping[str, tuple[int, yaml.Node]], name: str) -> float | None:
        if name not in parts:
            return None
        value: Any = self.plain(parts[name][1])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(parts[name][0], f"{name} is a number; got {value!r}")
        return float(value)

    def unique(self, rows: tuple[StudyRow, ...]) -> None:
        seen: dict[str, StudyRow] = {}
        for row in rows:
            earlier = seen.setdefault(row.key, row)
            if earlier is not row:
                raise self.error(row.line, f"row {row.name!r} is named like that of line {earlier.line}; both would "
                                 f"be kept as {row.key}")  # fmt: skip

    def runnable(self, line: int, baseline: str, rows: tuple[StudyRow, ...]) -> None:
        found = next((row for row in rows if row.name == baseline), None)
        if found is None or found.missing:
            names = ", ".join(repr(row.name) for row in rows if not row.missing)
            raise self.error(line, f"the baseline {baseline!r} is no row that can be run; there are {names}")
