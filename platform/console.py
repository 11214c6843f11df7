"""Everything the project writes to a terminal: results on standard output, remarks and progress on standard error."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column, Table
from rich.text import Text

from efafnet.platform.credentials import hidden

LOG_WIDTH = 140
"""Columns assumed where no terminal tells its width (job logs, pipes)."""
LOG_INTERVAL_S = 10.0
"""Seconds between two progress lines where no terminal can redraw one."""
BAR = range(5, 21)
"""Columns of a bar: fewer tell nothing, more take the room of figures."""
LONGEST_NAME = 30
"""Columns of what a bar is called."""
SENTENCE_BLANKS, SENTENCE_COLUMNS = 4, 30
"""Blanks that make a cell a sentence, which may be broken into lines, and the fewest columns it is broken to."""
DRAWN_PER_S = 4.0
"""Times a second that a line is drawn anew."""

_drawing: Console | None = None
"""The console whose last line is being drawn anew: what is printed meanwhile must go through it, or it would leave a
copy of that line behind."""

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

    Otherwise the next file it opens would become its standard output. What a stream of another encoding than UTF-8 has
    no sign for is a question mark there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")


class _Remarks(io.TextIOBase):
    """Standard error, where what cannot be written is lost and not the work: a terminal that was closed answers with an
    error, and so does a log on a full disk. A reader that goes away (head) still ends the program."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As the stream's."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """As the stream's."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """As the stream's."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        with _unwritten():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        with _unwritten():
            self._stream.flush()


@contextmanager
def _unwritten() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


class _Console(Console):
    """Rich's console, but a reader that goes away (head, less) is the caller's to hear of: rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise what the stream raised."""
        raise


def _console(*, stderr: bool) -> Console:
    """Make a console on the CURRENT stream: pytest and Ray replace ``sys.stdout`` while the program runs."""
    stream = sys.stderr if stderr else sys.stdout
    if _drawing is not None and stream.isatty():
        return _drawing
    told = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() or told.isdigit() else LOG_WIDTH
    file = cast(TextIO, _Remarks(stream)) if stderr else stream
    return _Console(file=file, width=width, highlight=False, markup=False, emoji=False)


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


def counted(number: int, one: str) -> str:
    """A number and what it counts, which is called ``one`` where it is one: 1 box, 2 boxes."""
    plural = "" if number == 1 else "es" if one.endswith("x") else "s"
    return f"{number} {one}{plural}"


def fail(message: object) -> None:
    """Print one error to standard error, on one line."""
    text = " ".join(harmless(message).split())
    _console(stderr=True).print(f"error: {text}", style="bold red", soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table to standard output. Columns whose cells are all numbers (or empty) are right-aligned.

    What is wider than the terminal has its column of sentences broken into lines, where there is one; else it becomes
    several tables below each other, each with the first column.
    """
    for row in rows:
        if len(row) != len(columns):
            raise AssertionError(f"{len(columns)} columns need rows of {len(columns)} cells; got {row}")
    console = _console(stderr=False)
    for number, part in enumerate(_parts(columns, rows, console.width)):
        chosen = [[row[index] for index in part] for row in rows]
        grid = _grid([columns[index] for index in part], chosen, title if number == 0 else None)
        with _full_output_named():
            console.print(grid)


def _parts(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> list[list[int]]:
    """The columns of each of the tables that a table is printed as; none is wider than ``width`` if that can be."""
    wide = [
        3 + max(cell_len(harmless(text)) for text in (name, *(row[i] for row in rows)))
        for i, name in enumerate(columns)
    ]
    widest = max(range(len(columns)), key=lambda index: wide[index])
    room = width - 1 - sum(wide) + wide[widest]
    if any(str(row[widest] or "").count(" ") >= SENTENCE_BLANKS for row in rows) and room >= SENTENCE_COLUMNS:
        return [list(range(len(columns)))]
    parts = [[0]]
    for index in range(1, len(columns)):
        if 1 + sum(wide[i] for i in parts[-1]) + wide[index] > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(index)
    return parts


def _grid(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None) -> Table:
    grid = Table(
        title=None if title is None else harmless(title), title_justify="left", title_style="bold", header_style="bold"
    )
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(cells) and all(_is_number(cell) for cell in cells)
        grid.add_column(harmless(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else harmless(cell) for cell in row))
    return grid


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


class _Line(ProgressColumn):
    """A task on one line, whatever the terminal's width: name, bar, amount, and as many of its figures as fit."""

    def __init__(self, console: Console) -> None:
        super().__init__(Column(no_wrap=True, overflow="crop"))
        self._console = console

    def render(self, task: Task) -> Text:
        """Draw it."""
        name, figures = task.description, task.fields["figures"](task)
        if len(name) > LONGEST_NAME:
            name = name[: LONGEST_NAME - 1] + "…"
        total = "?" if task.total is None else f"{task.total:.0f}"
        amount = f"{min(task.completed, task.total or task.completed):.0f}/{total}{task.fields['unit']}"
        room = self._console.width - len("^C")  # which Ctrl-C writes behind it; it would begin another line
        shown = fitting(f"{name}  {amount}", figures, room)
        wide = min(room - len(shown), BAR[-1])
        if wide < BAR[0]:
            return Text(shown)
        share = 0.0 if task.total is None else min(1.0, task.completed / task.total) if task.total else 1.0
        full = round(wide * share)
        signs = "#-" if self._console.options.ascii_only else "━╌"
        rest = shown.removeprefix(f"{name} ")
        return Text.assemble(name, " ", (signs[0] * full, "green"), (signs[1] * (wide - full), "dim"), rest)


def fitting(head: str, figures: Sequence[str], width: int) -> str:
    """The head, and of the figures, the most wanted first, as many as fit into ``width`` columns."""
    while figures and len("  ".join((head, *figures))) > width:
        figures = figures[:-1]
    return "  ".join((head, *figures))[:width]


@contextmanager
def _drawn(console: Console) -> Iterator[Progress]:
    """A line at the bottom of the terminal, until the end of the block; everything else is printed above it."""
    global _drawing
    with Progress(_Line(console), console=console, transient=True, refresh_per_second=DRAWN_PER_S) as bar:
        _drawing = console
        try:
            yield bar
        finally:
            _drawing = None


def _pace(task: Task) -> list[str]:
    """Time left, amount per second and time passed, of which the first two are known after a while."""
    told = [] if task.time_remaining is None else [f"{clock(task.time_remaining)} left"]
    told += [] if task.speed is None else [f"{task.speed:.3g}/s"]
    return [*told, f"{clock(task.elapsed or 0.0)} passed"]


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}" if minutes >= 60 else f"{minutes}:{whole:02d}"


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
    if console is _drawing:
        yield lambda _amount: None  # part of what has a line already
    elif console.is_terminal:
        with _drawn(console) as bar:
            task = bar.add_task(description, total=total, completed=done, unit=f" {unit}".rstrip(), figures=_pace)
            yield lambda amount: bar.advance(task, amount)
    else:
        yield _LineProgress(description, total, unit, done)


@contextmanager
def live_line(description: str, unit: str = "") -> Iterator[Callable[[float, float, Sequence[str]], None] | None]:
    """Draw a bar with newest figures below everything else; yields ``draw(done, total, figures)``.

    Where a terminal is too narrow for all figures, the last ones are left out. None where no terminal can draw it
    anew. Whatever is printed meanwhile appears above it. ``draw`` only notes what a thread of its own draws some times
    a second: a training step calls it, and must not wait for a terminal.
    """
    console = _console(stderr=True)
    if not console.is_terminal or console is _drawing:
        yield None
        return
    with _drawn(console) as bar:
        newest: Sequence[str] = ()
        name = harmless(description)
        task = bar.add_task(
            name, total=None, unit=f" {unit}".rstrip(), figures=lambda _task: [harmless(figure) for figure in newest]
        )

        def draw(done: float, total: float, figures: Sequence[str]) -> None:
            nonlocal newest
            newest = figures
            bar.update(task, completed=done, total=total)

        yield draw


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
