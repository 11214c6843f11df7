"""Short names for settings: what differs between trials, in few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SYMBOLS = {"loss.hard_joints": "R"}
"""Settings that papers know by a letter."""
_UNREAD = {"loss.hard_joints": ("loss.kind", "mse")}
"""Settings that are not read where another has that value."""


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest ends of dotted keys that still tell them apart: ``optimizer.lr`` is ``lr`` where no other is.

    The kind of a group is the group's own name: ``loss.kind`` is ``loss``.
    """
    keys = list(dict.fromkeys(keys))
    names = dict.fromkeys(keys, "")
    told = {key: SYMBOLS.get(key) or key.removesuffix(".kind") for key in keys}
    for parts in range(1, max((key.count(".") + 1 for key in keys), default=0) + 1):
        ends = {key: ".".join(told[key].split(".")[-parts:]) for key in keys if not names[key]}
        counts = Counter(ends.values())
        names |= {key: end for key, end in ends.items() if counts[end] == 1}
    return {key: name or key for key, name in names.items()}


def short_value(value: Any) -> str:
    """A value in few characters: three digits of a float, a list without brackets, a group's values without keys."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "/".join(short_value(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return "/".join(short_value(item) for item in value.values())
    return str(value)


def describe(settings: Mapping[str, Any], searched: Iterable[str]) -> str:
    """What a trial's settings are, of those that are searched: ``lr=0.00312 loss=ohkm R=7``."""
    names = short_names(searched)
    shown = {key: value for key, value in settings.items() if key in names and not _unread(key, settings)}
    return " ".join(f"{names[key]}={short_value(value)}" for key, value in shown.items())


def _unread(key: str, settings: Mapping[str, Any]) -> bool:
    switch, value = _UNREAD.get(key, ("", None))
    return switch in settings and settings[switch] == value
