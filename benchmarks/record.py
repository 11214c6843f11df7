"""What benchmarks remember: every figure with all its measurements, in one small JSON file per kind of machine.

Seconds hold on one kind of machine only, so a file names it: the processor with the instructions that torch uses of it
and the cores that this process may use, or the GPU. `benchmarks.compare` holds such files against each other.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efafnet.platform import machine
from efafnet.platform.provenance import code_version, environment, package_versions

if TYPE_CHECKING:
    import torch

_PACKAGES = ("numpy", "opencv-python-headless", "pyarrow", "ray", "torch")
_PLACES = ("json", "data", "port", "manifest", "memory_of")
"""Options that say where something lies, and not what is measured."""


@dataclass(frozen=True)
class Figure:
    """One figure and how it scattered."""

    unit: str
    values: tuple[float, ...]
    """Of each repetition, in order; at least one."""
    more_is_better: bool = False
    """Whether a larger value is the better one, as with rates; otherwise a smaller one is, as with times."""
    exact: bool = False
    """Whether the same code always gives this value, as with counts, sizes and simulations from one seed."""

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def scatter(self) -> float | None:
        """Largest less smallest value; 0 of an exact figure; None for a single one, whose scatter nobody knows."""
        if self.exact:
            return 0.0
        return max(self.values) - min(self.values) if len(self.values) > 1 else None


@dataclass
class Record:
    """The figures of one run of a benchmark."""

    benchmark: str
    machine: str
    """``kind_of_machine``."""
    settings: dict[str, Any]
    """The options that it ran with."""
    commit: str
    """The code; with a + where the tree held changes."""
    versions: dict[str, str]
    figures: dict[str, Figure] = field(default_factory=dict)

    @classmethod
    def begun(cls, benchmark: str, given: argparse.Namespace) -> Record:
        """A record without figures of a run with the options ``given``, on a machine that is not named yet."""
        settings = {key: value for key, value in vars(given).items() if key not in _PLACES}
        plain = json.loads(json.dumps(settings, default=str))
        code = code_version()
        commit = f"{code['git_commit'] or code['source_digest']}{'+' if code['git_dirty'] else ''}"
        return cls(benchmark, "", plain, commit, package_versions(_PACKAGES))

    def add(
        self, name: str, unit: str, values: Sequence[float], *, more_is_better: bool = False, exact: bool = False
    ) -> None:
        """Remember a figure by its repetitions; four digits of each are kept."""
        rounded = tuple(float(f"{value:.4g}") for value in values)
        self.figures[name] = Figure(unit, rounded, more_is_better, exact)

    def write(self, path: Path) -> None:
        """Write the record, one line per figure."""
        head = {key: value for key, value in asdict(self).items() if key != "figures"}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        figures = [f"    {json.dumps(name)}: {json.dumps(asdict(figure))}" for name, figure in self.figures.items()]
        lines.append('  "figures": {\n' + ",\n".join(figures) + "\n  }")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record.

        Raises:
            ValueError: the file is not one.
        """
        try:
            tree: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            figures = {
                name: Figure(**{**entry, "values": tuple(entry["values"])}) for name, entry in tree["figures"].items()
            }
            return cls(**{**tree, "figures": figures})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: no record of a benchmark ({error}); write one with `python -m benchmarks.bench_… --json FILE`"
            ) from error


def kind_of_machine(device: torch.device | None = None) -> str:
    """What must be the same for seconds to be comparable: the GPU, or the processor and its cores of this process."""
    import torch

    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = machine.cores()
    name = f"{environment()['processor']}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, {count} core{'s' * (count > 1)}"


def file_name(benchmark: str, kind: str) -> str:
    """Name of the file that keeps a benchmark's figures of one kind of machine."""
    return f"{benchmark}.{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which every benchmark has."""
    parser.add_argument("--json", type=Path, default=None, help="file to write all measurements to, for bench-compare")


@contextmanager
def recorded(benchmark: str, given: argparse.Namespace, device: torch.device | None = None) -> Iterator[Record]:
    """A record to add figures to; it is written at the end if ``--json`` asks for that."""
    record = Record.begun(benchmark, given)
    yield record
    if given.json is not None:
        # Not before: what says which machine it is imports torch, and a benchmark may measure memory.
        record.machine = kind_of_machine(device)
        record.write(given.json)
