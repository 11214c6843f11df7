"""Checks a space against a configuration before any trial runs: every option, both ends of every range, together.

The configuration itself is the judge: each candidate is resolved exactly as a trial would resolve it, so a space
cannot promise what training would refuse.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from efafnet.tune_spaces.space import Choice, Entry, Fixed, Option, Range, Settings, Space, SpaceError, parameters

MAX_COMBINATIONS = 2000
"""Combinations of extreme values that are all tried; a larger space is sampled."""
MAX_LISTED_VALUES = 64
"""Lattices up to this many values are tried value by value, since a rule may refuse one in the middle."""

Resolve = Callable[[Settings], object]
"""Builds the configuration of a trial from its settings; raises ValueError where the configuration refuses them."""


def check_space(space: Space, resolve: Resolve) -> int:
    """Resolve the extreme settings of a space and its start points; returns how many were tried.

    Raises:
        SpaceError: the first settings that the configuration refuses, with the file and line of the key at fault.
    """
    tried = 0
    for settings in _candidates(space):
        tried += 1
        try:
            resolve(settings)
        except ValueError as error:
            culprits = _culprits(settings, resolve, str(error))
            raise _refusal(space, settings, culprits, error) from error
    for line, settings in space.start:
        tried += 1
        try:
            parameters(space, settings)
            resolve(_fixed(space.entries) | settings)
        except ValueError as error:
            raise SpaceError(f"{space.source}:{line}: a start point does not fit: {error}") from error
    return tried


def _refusal(space: Space, settings: Settings, culprits: list[str], error: ValueError) -> SpaceError:
    line = max(entry.line for entry in _active(space.entries, settings) if entry.key in culprits)
    values = ", ".join(f"{key}={settings[key]}" for key in culprits)
    together = " together" if len(culprits) > 1 else ""
    return SpaceError(f"{space.source}:{line}: {values} is refused{together} by the configuration: {error}")


def _candidates(space: Space) -> Iterator[Settings]:
    """Each value by itself first (so that an error names one key), then the combinations."""
    for choices, entry in _paths(space.entries, {}):
        for value in _values(entry.domain):
            yield _corner(space.entries, choices | {entry.key: value})
    if _count(space.entries) <= MAX_COMBINATIONS:
        yield from _corners(space.entries)
    else:
        generator = random.Random(0)
        for _ in range(MAX_COMBINATIONS):
            yield _random_corner(space.entries, generator)


def _paths(entries: Sequence[Entry], choices: Settings) -> Iterator[tuple[Settings, Entry]]:
    """Every entry with the choices that make it exist."""
    for entry in entries:
        yield choices, entry
        if isinstance(entry.domain, Choice):
            for option in entry.domain.options:
                yield from _paths(option.entries, choices | {entry.key: option.value})


def _corner(entries: Sequence[Entry], forced: Settings) -> Settings:
    """The lowest values and first options, except where ``forced`` says otherwise."""
    settings: Settings = {}
    for entry in entries:
        domain = entry.domain
        value = forced.get(entry.key, _ends(domain)[0])
        settings[entry.key] = value
        if isinstance(domain, Choice):
            settings |= _corner(_option(domain, value).entries, forced)
    return settings


def _option(domain: Choice, value: object) -> Option:
    return next(option for option in domain.options if option.value is value or option.value == value)


def _values(domain: Fixed | Range | Choice) -> list[object]:
    """The values tried one by one: all of a short lattice, the ends of a long or continuous range."""
    if isinstance(domain, Range):
        lattice = domain.lattice()
        if lattice and len(lattice) <= MAX_LISTED_VALUES:
            return [int(value) if domain.integer else value for value in lattice]
    return _ends(domain)


def _ends(domain: Fixed | Range | Choice) -> list[object]:
    if isinstance(domain, Fixed):
        return [domain.value]
    if isinstance(domain, Choice):
        return [option.value for option in domain.options]
    lattice = domain.lattice() if domain.step is not None else None
    top = domain.high if lattice is None else lattice[-1]
    return [int(end) if domain.integer else end for end in (domain.low, top)]


def _axis(entry: Entry) -> Iterator[Settings]:
    """The extremes of one entry, each with the extremes of what it brings along."""
    domain = entry.domain
    if isinstance(domain, Choice):
        for option in domain.options:
            for inner in _corners(option.entries):
                yield {entry.key: option.value} | inner
    else:
        for value in _ends(domain):
            yield {entry.key: value}


def _corners(entries: Sequence[Entry]) -> Iterator[Settings]:
    for parts in product(*(list(_axis(entry)) for entry in entries)):
        yield {key: value for part in parts for key, value in part.items()}


def _count(entries: Sequence[Entry]) -> int:
    total = 1
    for entry in entries:
        if isinstance(entry.domain, Choice):
            total *= sum(_count(option.entries) for option in entry.domain.options)
        elif isinstance(entry.domain, Range):
            total *= 2
    return total


def _random_corner(entries: Sequence[Entry], generator: random.Random) -> Settings:
    settings: Settings = {}
    for entry in entries:
        if isinstance(entry.domain, Choice):
            option = generator.choice(entry.domain.options)
            settings |= {entry.key: option.value} | _random_corner(option.entries, generator)
        else:
            settings[entry.key] = generator.choice(_ends(entry.domain))
    return settings


def _fixed(entries: Sequence[Entry]) -> Settings:
    return {entry.key: entry.domain.value for entry in entries if isinstance(entry.domain, Fixed)}


def _culprits(settings: Settings, resolve: Resolve, message: str) -> list[str]:
    """The smallest set of keys that still gives the same refusal: what is not needed for it is taken away."""
    kept = dict(settings)
    for key in reversed(settings):
        fewer = {name: value for name, value in kept.items() if name != key}
        try:
            resolve(fewer)
        except ValueError as error:
            if str(error) == message and fewer:
                kept = fewer
    return list(kept)


def _active(entries: Sequence[Entry], settings: Settings) -> Iterator[Entry]:
    """The entries that exist under the options chosen in ``settings``."""
    for entry in entries:
        yield entry
        if isinstance(entry.domain, Choice):
            yield from _active(_option(entry.domain, settings[entry.key]).entries, settings)
