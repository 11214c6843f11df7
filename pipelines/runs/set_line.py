"""The line of a set of runs that a terminal draws anew: how many are over, when all will be, and what else counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from efafnet.platform import console

Show = Callable[[int, Sequence[str]], None]
"""Draws how many of a set are over, and its newest figures, the most wanted first."""


@contextmanager
def set_line(name: str, unit: str, total: int, over: int) -> Iterator[Show]:
    """Draw the line; yields ``show(over, figures)``, which does nothing where no terminal can draw it.

    Args:
        name: of the set.
        unit: what it consists of, as "runs".
        total: how many there are.
        over: how many were over before: the time left is judged by those that end here.
    """
    began_s, before = time.monotonic(), over
    with console.live_line(name, unit) as draw:

        def show(over: int, figures: Sequence[str]) -> None:
            if draw is None:
                return
            here = over - before
            each_s = (time.monotonic() - began_s) / here if here else None
            left = [] if each_s is None else [f"ETA {console.clock(each_s * (total - over))}"]
            draw(over, total, [*left, *figures])

        yield show
