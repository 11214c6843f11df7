"""Single values of files that others wrote: what counts as a number, an id, a yes; whole columns of them at once.

Numbers written as text and whole numbers written with a point are taken for what they are. Booleans are no numbers,
and neither are NaN, infinity, or integers that 64 bits cannot hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PX = 1e7
"""Largest coordinate or side of an image that is believed: OpenCV reads a tenth of it, float32 is exact up to it."""

_INT64 = 2**63
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,30}(\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?\s*")
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}
_PLAIN = {int, float}
_FIELDS_SHOWN = 6


def integer(value: Any) -> int | None:
    """An integer of 64 bits: written as one, as a float without fraction, or as text; None for anything else."""
    if type(value) is int:
        found = value
    elif isinstance(value, float) and value.is_integer():
        found = int(value)
    elif isinstance(value, str) and _INTEGER.fullmatch(value):
        found = int(value.partition(".")[0])
    else:
        return None
    return found if -_INT64 <= found < _INT64 else None


def no_integer(value: Any) -> str:
    """``value`` and why it is no integer, for messages."""
    whole = isinstance(value, float) and value.is_integer()
    if whole or type(value) is int or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        return f"{shown(value)} (does not fit into 64 bits; renumber)"
    return f"{shown(value)} ({_kind(value)}; it must be an integer)"


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", float: "no whole number", list: "a list", dict: "an object"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)


def number(value: Any) -> float | None:
    """A finite number: int, float or text that says one; None for anything else."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not (len(value) < 400 and _NUMBER.fullmatch(value)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def flag(value: Any) -> bool | None:
    """Yes or no, as a boolean, 0 or 1, or text that says one of these; absent is no. None for anything else."""
    if value is None:
        return False
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def text(value: Any) -> str | None:
    """Text that is not empty and can be written down: JSON may hold halves of characters, which no file name has."""
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return value


def shown(value: Any, length: int = 60) -> str:
    """``value`` as an error shows it: cut, and safe to print on any terminal."""
    try:
        found = ascii(value)
    except RecursionError:
        return f"{_kind(value)} nested too deep"
    return found if len(found) <= length else f"{found[: length - 1]}…"


def told(entry: Mapping[str, Any], field: str) -> str:
    """A field of an entry as messages give it: its name and value, or that it is not there, and what is instead."""
    if field in entry:
        return f"{field} {shown(entry[field])}"
    others = ", ".join(shown(key, 20) for key in list(entry)[:_FIELDS_SHOWN])
    return f"no {field} (its fields: {others or 'none'})"


def number_rows(rows: Sequence[Any], width: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Lists of ``width`` numbers each as float64 (N, width), and which are such (N,): plain finite JSON numbers.

    What is False may still be readable value by value (text, nulls); its row is 0. Nothing is tested one by one where
    all rows are plain: five million numbers take a fraction of a second.
    """
    found = np.array([type(row) is list and len(row) == width for row in rows], bool)
    if not (found.all() and set(map(type, chain.from_iterable(rows))) <= _PLAIN):
        found &= np.array([type(row) is list and set(map(type, row)) <= _PLAIN for row in rows], bool)
    if found.all() and len(rows):
        table = _floats(rows)
    else:
        table = np.zeros((len(rows), width))
        if found.any():
            table[found] = _floats([row for row, is_plain in zip(rows, found.tolist(), strict=True) if is_plain])
    finite = np.isfinite(table).all(axis=1)
    table[~finite] = 0
    return table, found & finite


def _floats(rows: Sequence[list[Any]]) -> NDArray[np.float64]:
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        # An integer of four hundred digits is as far from a coordinate as NaN.
        return np.array([[math.nan if (v := number(value)) is None else v for value in row] for row in rows])


def numbers(value: Any, length: int) -> list[float] | None:
    """``length`` finite numbers, one by one as ``number`` takes them; None for anything else."""
    if not isinstance(value, list) or len(value) != length:
        return None
    found = [number(item) for item in value]
    return None if None in found else found  # type: ignore[return-value]
