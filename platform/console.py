"""Everything the project writes to a terminal: results on standard output, remarks and progress on standard error."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from efafnet.platform.credentials import hidden

LOG_WIDTH = 140
"""Columns assumed where no terminal tells its width (job logs, pipes)."""
LOG_INTERVAL_S = 10.0
"""Seconds between two progress lines where no terminal can redraw one."""


_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but for line feed and tab, marks that turn the direction of writing, and halves of surrogate pairs."""


def harmless(text: object) -> str:
    """Return ``text`` without passwords, and with everything spelled out that would steer a terminal: names come from
    anywhere."""
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), hidden(str(text)))


_error_descriptor = 2


def error_descriptor() -> int:
    """The file descriptor on which people read this program's errors, for who writes past Python or starts programs."""
    return _error_descriptor


def set_error_descriptor(descriptor: int) -> None:
    """Name another one: descriptor 2 leads elsewhere meanwhile."""
    global _error_descriptor
    _error_descriptor = descriptor


def open_streams() -> None:
    """Give a program that was started with closed streams (``>&-``, some init and cron set-ups) ones that lead nowhere.

    Otherwise the next file it opens would become its standard output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


class _Console(Console):
    """Rich's console, but a reader that goes away (head, less) is the caller's to hear of: rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise what the stream raised."""
        raise


def _console(*, stderr: bool) -> Console:
    """Make a console on the CURRENT stream: pytest and Ray replace ``sys.stdout`` while the program runs."""
    stream = sys.stderr if stderr else sys.stdout
    told = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() or told.isdigit() else LOG_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def say(message: object = "", *, style: str | None = None) -> None:
    """Print one result line to standard output. Long lines (paths, addresses) are never broken."""
    with _full_output_named():
        _console(stderr=False).print(harmless(message), style=style, soft_wrap=True)


def note(message: object) -> None:
    """Print one remark to standard error: what happens, not what came out."""
    _console(stderr=True).print(harmless(message), soft_wrap=True)


def warn(message: object) -> None:
    """Print one warning to standard error."""
    _console(stderr=True).print(harmless(f"warning: {message}"), style="yellow", soft_wrap=True)


def fail(message: object) -> None:
    """Print one error to standard error, on one line."""
    text = " ".join(harmless(message).split())
    _console(stderr=True).print(f"error: {text}", style="bold red", soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table to standard output. Columns whose cells are all numbers (or empty) are right-aligned."""
    grid = Table(
        title=None if title is None else harmless(title), title_justify="left", title_style="bold", header_style="bold"
    )
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(cells) and all(_is_number(cell) for cell in cells)
        grid.add_column(harmless(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        if len(row) != len(columns):
            raise AssertionError(f"{len(columns)} columns need rows of {len(columns)} cells; got {row}")
        grid.add_row(*("" if cell is None else harmless(cell) for cell in row))
    with _full_output_named():
        _console(stderr=False).print(grid)


@contextmanager
def _full_output_named() -> Iterator[None]:
    """Say what a disk is too full for: the system's error names no file here."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"standard output cannot be written: {error.strerror or error}") from error


def _is_number(cell: object) -> bool:
    if cell is None or isinstance(cell, int | float):
        return True
    try:
        float(str(cell).rstrip("%") or "0")
    except ValueError:
        return False
    return True


class _RateColumn(ProgressColumn):
    """Amount per second, as soon as it is known."""

    def render(self, task: Task) -> Text:
        """Text of the column."""
        return Text("" if task.speed is None else f"{task.speed:.0f}/s")


@contextmanager
def progress(
    description: str, total: float | None, *, unit: str = "", done: int = 0
) -> Iterator[Callable[[float], None]]:
    """Show how far a stage is, how fast, and what is left; yields ``advance(amount)``.

    ``done`` of the total is there from earlier and counts towards no rate.

    On a terminal this is a live bar; elsewhere (a job's log) one line every ``LOG_INTERVAL_S`` seconds, because a
    redrawn bar would fill the log.
    """
    console = _console(stderr=True)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task(description, total=total, completed=done)
            yield lambda amount: bar.advance(task, amount)
    else:
        yield _LineProgress(description, total, unit, done)


@contextmanager
def live_line(description: str) -> Iterator[Callable[[float, float, str], None] | None]:
    """Draw a bar with newest figures below everything else; yields ``draw(done, total, text)``.

    None where no terminal can draw it anew. Whatever is printed meanwhile appears above it.
    """
    console = _console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(harmless(description), total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=harmless(text))


class _LineProgress:
    """Progress as occasional log lines."""

    def __init__(self, description: str, total: float | None, unit: str, done: int) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._before = done
        self._done = float(done)
        self._began = self._last = time.monotonic()

    def __call__(self, amount: float) -> None:
        self._done += amount
        now = time.monotonic()
        finished = self._total is not None and self._done >= self._total
        if finished or now - self._last >= LOG_INTERVAL_S:
            self._last = now
            of = f"/{self._total:g}" if self._total is not None else ""
            elapsed_s = now - self._began
            done = f"{self._done:g}" if self._done.is_integer() else f"{self._done:.1f}"
            line = f"{self._description}: {done}{of} {self._unit} after {elapsed_s:.0f} s"
            note((line if finished else line + self._pace(elapsed_s)).replace("  ", " "))

    def _pace(self, elapsed_s: float) -> str:
        """Rate so far, and the time left at that rate."""
        per_s = (self._done - self._before) / elapsed_s
        if per_s <= 0:
            return ""
        rate = f", {per_s:.3g}/s"
        return rate if self._total is None else f"{rate}, {(self._total - self._done) / per_s:.0f} s left"
