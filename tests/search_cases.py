"""A small space, and ledgers of searches of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efafnet.pipelines.search.ledger import Ledger
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import Space

SPACE = """\
search:
  optimizer.lr: {float: [1e-4, 1e-2], log: true}
  loss.kind: {choice: {mse: {}, ohkm: {loss.hard_joints: {int: [1, 17]}}}}
"""


def space(text: str = SPACE) -> Space:
    return parse_space(text, "my.yaml")


def ledger(directory: Path, **changes: Any) -> Ledger:
    settings: dict[str, Any] = {"trials": 4, "sampler": "random", "seed": 1, "startup": 2} | changes
    return Ledger(directory / "study.db", "search", settings.pop("space", space()), **settings)


def states(book: Ledger) -> list[str]:
    return [trial.state.name for trial in book.study.trials]


def search_to_the_end(book: Ledger) -> None:
    """Run the trials that are left, each of three figures; every other one is pruned."""
    while (assigned := book.next()) is not None:
        for samples in (100, 200, 300):
            book.report(assigned.number, samples, samples / 1000)
        book.finish(assigned.number, "complete" if assigned.number % 2 else "pruned")
