"""What a search space is, and how settings are drawn from it. :mod:`.reading` reads the files, :mod:`.checking` checks.

A space says what a search may change. Keys are the dotted keys of the training configuration::

    about: one sentence
    search:
      optimizer.lr: {float: [1e-4, 1e-2], log: true}      # a range; `step` makes it a lattice
      loss.hard_joints: {int: [1, num_joints]}            # a bound may be a name the caller knows
      input: {choice: [256x192, 384x288]}                 # one of several values
      schedule.kind:
        choice:                                           # options that bring their own settings
          multistep: {schedule.factor: {float: [0.05, 0.5], log: true}}
          cosine: {}
      loss.kind: ohkm                                     # a plain value is fixed for every trial
    start:
      - {optimizer.lr: 1e-3}                              # known-good settings, tried first
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

Scalar = bool | int | float | str | None
Settings = dict[str, Any]
"""Values by dotted configuration key."""


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

    @property
    def count(self) -> int | None:
        """How many values the range has, or None where it is continuous."""
        step = self.step or (1 if self.integer else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    def lattice(self) -> list[float] | None:
        """Every value of the range, or None where it is continuous."""
        count = self.count
        return None if count is None else [self.low + index * (self.step or 1) for index in range(count)]


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
            settings[entry.key] = _suggest_number(entry.name, domain, trial)
        else:
            label = trial.suggest_categorical(entry.name, [option.label for option in domain.options])
            option = _labelled(entry.key, domain, label)
            settings |= {entry.key: option.value} | _suggest(option.entries, trial)
    return settings


def _suggest_number(name: str, domain: Range, trial: Trial) -> float:
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
            drawn[entry.name] = _in_range(entry.key, domain, value)
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
