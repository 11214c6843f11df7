"""Python's collector of garbage, kept from looking through what stays for as long as the process does."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MANY_MODULES = 100
"""torch has 800, MLflow with its store 900."""


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collect nothing meanwhile: for what makes many objects that stay, as imports do; also a decorator.

    torch, its compiler and MLflow are 900,000 objects, through which the collector goes again and again while they are
    imported: .8 of 5.6 CPU seconds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """As ``collection_paused``, and what is there afterwards is left out of all later collections; also a decorator.

    Without that the next ones go through all that was imported: .1 to .3 CPU seconds each, and several are due. Where
    nothing large was imported, for it was there before, nothing is left out: what a long process has made since
    would never be given back.
    """
    before = len(sys.modules)
    with collection_paused():
        yield
        if len(sys.modules) - before > _MANY_MODULES:
            gc.freeze()


@contextmanager
def collected_between_points() -> Iterator[None]:
    """Keep Python's collector out of the steps: a pause of one worker is a pause of all, whenever it pleases.

    What was made before the loop is left alone for good; what the loop leaves is collected at the points of its curves.
    A program that has frozen what is to stay in it finds it frozen afterwards, and nothing of this run among it.
    """
    was_enabled, frozen_before = gc.isenabled(), _is_frozen()
    gc.collect()
    if not frozen_before:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_rarely() -> None:
    """Look for garbage after 10,000 new objects and not after 700, from now on.

    For processes that import much at places that are not ours: of 5.8 CPU seconds that a trial's process takes to
    import Ray Tune, torch and MLflow .7 were spent on looking, and found next to nothing.
    """
    gc.set_threshold(10_000, *gc.get_threshold()[1:])


_found_frozen = False
"""Whether this program was found to keep something frozen."""


def _is_frozen() -> bool:
    """Whether the program keeps something frozen. Asked until it does: Python counts all that is frozen to say so,
    which takes as long as a training step of a small network."""
    global _found_frozen
    _found_frozen = _found_frozen or gc.get_freeze_count() > 0
    return _found_frozen
