"""Spaces written on the command line, as ``optimizer.lr=log(1e-4, 1e-2)``: the same space as YAML.

``log``, ``float`` and ``int`` take two bounds and then words of a range (``step=0.1``, ``around=1e-3``, ``log=true``);
``choice`` takes values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from efafnet.tune_spaces.space import SpaceError

SOURCE = "command-line"
"""The file's name in messages; lines are counted from the first range given, and one further down."""
_RANGE = re.compile(r"(?P<key>[A-Za-z_][\w.]*)=(?P<kind>log|float|int|choice)\((?P<inside>.*)\)", re.DOTALL)
_WORD = re.compile(r"\s*([a-z]+)\s*=\s*(.+)", re.DOTALL)


def is_range(word: str) -> bool:
    """Whether a word of the command line says what is searched."""
    return _RANGE.fullmatch(word.strip()) is not None


def to_yaml(words: Sequence[str]) -> str:
    """A space's text.

    Raises:
        SpaceError: a range without two bounds, or with a word that is none of a range's.
    """
    return "\n".join(["search:", *map(_line, words)]) + "\n"


def _line(word: str) -> str:
    match = _RANGE.fullmatch(word.strip())
    assert match is not None, "asked for with is_range"
    key, kind, inside = match["key"], match["kind"], match["inside"].strip()
    if kind == "choice":
        return f"  {key}: {{choice: [{inside}]}}"
    parts = [part.strip() for part in inside.split(",")]
    bounds = [part for part in parts if not _WORD.fullmatch(part)]
    words = [found for part in parts if (found := _WORD.fullmatch(part))]
    if len(bounds) != 2 or parts[:2] != bounds:
        raise SpaceError(f"{SOURCE}: {word}: a range is {key}={kind}(low, high), and after that words such as step=…")
    more = ["log: true"] * (kind == "log") + [f"{found[1]}: {found[2]}" for found in words]
    drawn = "int" if kind == "int" else "float"
    return f"  {key}: {{{', '.join([f'{drawn}: [{bounds[0]}, {bounds[1]}]', *more])}}}"
