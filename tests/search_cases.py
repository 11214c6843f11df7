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
