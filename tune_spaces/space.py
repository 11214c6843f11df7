"""What a search space is, and how settings are drawn from it. :mod:`.reading` reads the files, :mod:`.checking` checks.

A space says what a search may change. Keys are the dotted keys of the training configuration::

    about: one sentence
    search:
      optimizer.lr: {float: [1e-4, 1e-2], log: true}      # a range; `step` makes it a lattice (log: a factor)
      schedule.factor: {float: [0.05, 0.5], around: 0.1}  # drawn from a normal around .1
      loss.hard_joints: {int: [1, num_joints]}            # a bound may be a name the caller knows
      input: {choice: [256x192, 384x288]}                 # one of several values
      schedule.kind:
        choice:                                           # options that bring their own settings
          multistep: {schedule.factor: {float: [0.05, 0.5], log: true}}
          cosine: {}
      schedule.milestones: [=0.6*epochs, =0.8*epochs]     # a plain value is fixed; = takes a name for its number
    start:
      - {optimizer.lr: 1e-3}                              # known-good settings, tried first
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import NormalDist
from typing import Any, Protocol

Scalar = bool | int | float | str | None
Settings = dict[str, Any]
"""Values by dotted configuration key."""
_EDGE = 1e-12
"""Shares nearer to 0 or 1 are taken to be this near: a normal reaches them nowhere."""


class SpaceError(ValueError):
    """A search space that cannot be used; the message starts with file and line."""


class Trial(Protocol):
    """The part of ``optuna.Trial`` that draws values."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """Draw a real number from [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Draw an integer from [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """Draw one of the choices."""


@dataclass(frozen=True)
class Fixed:
    """A value that is the same in every trial (of the option it stands in)."""

    value: Any


@dataclass(frozen=True)
class Range:
    """Numbers in [low, high], both ends included."""

    low: float
    high: float
    integer: bool
    log: bool = False
    step: float | None = None
    """From one value to the next; of a log range the factor."""
    around: float | None = None
    """Where values are likely: they are drawn from a normal around it, cut off at the bounds, with a quarter of the
    range as standard deviation (on the log scale of a log range)."""

    @property
    def factor(self) -> float | None:
        """The factor from one value to the next of a log range with a step."""
        return self.step if self.log else None

    @property
    def count(self) -> int | None:
        """How many values the range has, or None where it is continuous."""
        if self.factor is not None:
            return int(math.log(self.high / self.low) / math.log(self.factor) + 1e-9) + 1
        step = self.step or (1 if self.integer else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    def lattice(self) -> list[float] | None:
        """Every value of the range, or None where it is continuous."""
        count = self.count
        if count is None:
            return None
        if self.factor is not None:
            values = [float(f"{self.low * self.factor**index:.6g}") for index in range(count)]
            return list(dict.fromkeys(map(round, values))) if self.integer else values
        return [self.low + index * (self.step or 1) for index in range(count)]

    def at(self, share: float) -> float:
        """The value below which ``share`` of what is drawn ``around`` a value lies."""
        low, high, normal = self._bell()
        value = normal.inv_cdf(min(max(low + share * (high - low), _EDGE), 1 - _EDGE))
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.integer else value

    def share(self, value: float) -> float:
        """The inverse of ``at``."""
        low, high, normal = self._bell()
        return (normal.cdf(math.log(value) if self.log else value) - low) / (high - low)

    def _bell(self) -> tuple[float, float, NormalDist]:
        """The normal, and how much of it lies below either bound."""
        assert self.around is not None, "asked of ranges around a value"
        low, middle, high = (math.log(x) if self.log else x for x in (self.low, self.around, self.high))
        normal = NormalDist(middle, (high - low) / 4)
        return normal.cdf(low), normal.cdf(high), normal


@dataclass(frozen=True)
class Option:
    """One option of a choice: its value, and the settings that exist only where it is chosen."""

    label: Scalar
    value: Any
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One of several options."""

    options: tuple[Option, ...]


@dataclass(frozen=True)
class Entry:
    """One line of a space: a configuration key, what it may be, and the name of the parameter in the study."""

    key: str
    line: int = field(compare=False)
    domain: Fixed | Range | Choice
    name: str


@dataclass(frozen=True)
class Space:
    """A search space as it was read. ``source`` is the file's path for messages, ``text`` its content."""

    name: str
    source: str
    text: str
    about: str
    entries: tuple[Entry, ...]
    start: tuple[tuple[int, Settings], ...] = ()

    @property
    def searched(self) -> tuple[Entry, ...]:
        """Every entry that varies, those inside options included."""
        return tuple(entry for entry in walk(self.entries) if not isinstance(entry.domain, Fixed))


def walk(entries: Sequence[Entry]) -> Iterator[Entry]:
    """All entries, depth first."""
    for entry in entries:
        yield entry
        if isinstance(entry.domain, Choice):
            for option in entry.domain.options:
                yield from walk(option.entries)


def suggest(space: Space, trial: Trial) -> Settings:
    """Draw one trial's settings: the define-by-run function of the study."""
    return _suggest(space.entries, trial)


def _suggest(entries: Sequence[Entry], trial: Trial) -> Settings:
    settings: Settings = {}
    for entry in entries:
        domain = entry.domain
        if isinstance(domain, Fixed):
            settings[entry.key] = domain.value
        elif isinstance(domain, Range):
            settings[entry.key] = _suggest_number(_parameter(entry), domain, trial)
        else:
            label = trial.suggest_categorical(entry.name, [option.label for option in domain.options])
            option = _labelled(entry.key, domain, label)
            settings |= {entry.key: option.value} | _suggest(option.entries, trial)
    return settings


def _parameter(entry: Entry) -> str:
    """The parameter's name in the study, which keeps the place on a log lattice and the share of a normal, not the
    value: Optuna has neither."""
    domain = entry.domain
    if isinstance(domain, Range) and domain.factor is not None:
        return f"{entry.name} (place)"
    return f"{entry.name} (share)" if isinstance(domain, Range) and domain.around is not None else entry.name


def _suggest_number(name: str, domain: Range, trial: Trial) -> float:
    if domain.around is not None:
        return domain.at(trial.suggest_float(name, 0.0, 1.0, step=None, log=False))
    if domain.factor is not None:
        values = domain.lattice() or []
        return values[trial.suggest_int(name, 0, len(values) - 1, step=1, log=False)]
    if domain.integer:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _labelled(key: str, domain: Choice, label: Scalar) -> Option:
    for option in domain.options:
        if type(option.label) is type(label) and option.label == label:
            return option
    raise ValueError(f"{key} has no option {label!r}; there are {[option.label for option in domain.options]}")


def parameters(space: Space, settings: Mapping[str, Any]) -> dict[str, Scalar]:
    """The study's parameters that draw ``settings``: the inverse of :func:`suggest`.

    Keys the settings do not mention are left out: the study draws them.

    Raises:
        ValueError: a setting that the space does not search, or a value outside its range.
    """
    drawn: dict[str, Scalar] = {}
    unused = set(settings) - _collect(space.entries, settings, drawn)
    if unused:
        keys = ", ".join(sorted({entry.key for entry in space.searched}))
        raise ValueError(f"{', '.join(sorted(unused))} is not searched here (with these settings); searched: {keys}")
    return drawn


def _collect(entries: Sequence[Entry], settings: Mapping[str, Any], drawn: dict[str, Scalar]) -> set[str]:
    used: set[str] = set()
    for entry in entries:
        if entry.key not in settings:
            continue
        value, domain = settings[entry.key], entry.domain
        used.add(entry.key)
        if isinstance(domain, Range):
            drawn[_parameter(entry)] = _in_range(entry.key, domain, value)
        elif isinstance(domain, Choice):
            option = next((option for option in domain.options if option.value == value), None)
            if option is None:
                raise ValueError(f"{entry.key}={value} is not among {[option.value for option in domain.options]}")
            drawn[entry.name] = option.label
            used |= _collect(option.entries, settings, drawn)
        elif value != domain.value:
            raise ValueError(f"{entry.key}={value}, but this space fixes it at {domain.value}")
    return used


def _in_range(key: str, domain: Range, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not domain.low <= value <= domain.high or (domain.integer and value != int(value)):
        raise ValueError(f"{key}={value} lies outside [{domain.low}, {domain.high}]")
    if domain.around is not None:
        return domain.share(value)
    if domain.factor is not None:
        values = domain.lattice() or []
        return min(range(len(values)), key=lambda place: abs(math.log(values[place] / value)))
    return int(value) if domain.integer else float(value)


def grid(space: Space) -> list[Settings]:
    """Every combination of the space, in the file's order.

    Raises:
        SpaceError: a continuous range has no grid; it needs a ``step`` or a ``choice``.
    """
    return _grid(space, space.entries)


def grid_size(space: Space) -> int | None:
    """How many combinations ``grid`` has, without making them; None where it has none, for a continuous range."""
    return _grid_size(space.entries)


def _grid_size(entries: Sequence[Entry]) -> int | None:
    size = 1
    for entry in entries:
        if isinstance(entry.domain, Fixed):
            continue
        sizes = (
            [entry.domain.count]
            if isinstance(entry.domain, Range)
            else [_grid_size(option.entries) for option in entry.domain.options]
        )
        if None in sizes:
            return None
        size *= sum(each for each in sizes if each is not None)
    return size


def _grid(space: Space, entries: Sequence[Entry]) -> list[Settings]:
    axes: list[list[Settings]] = []
    for entry in entries:
        if isinstance(entry.domain, Fixed):
            axes.append([{entry.key: entry.domain.value}])
        elif isinstance(entry.domain, Range):
            axes.append([{entry.key: value} for value in _lattice(space, entry, entry.domain)])
        else:
            options = entry.domain.options
            axes.append([{entry.key: o.value} | inner for o in options for inner in _grid(space, o.entries)])
    return [dict(item for part in parts for item in part.items()) for parts in product(*axes)]


def _lattice(space: Space, entry: Entry, domain: Range) -> list[float]:
    values = domain.lattice()
    if values is None:
        raise SpaceError(
            f"{space.source}:{entry.line}: a grid needs every value of {entry.key}, and a float range has endlessly "
            f"many; add a step (step: 0.1), list values (choice: [...]), or search with sampler tpe or random"
        )
    return [int(value) for value in values] if domain.integer else values
