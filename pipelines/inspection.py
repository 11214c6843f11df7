"""`efafnet inspect`: a crop store, or the file of an exported network."""

from __future__ import annotations

from pathlib import Path

from efafnet.pipelines.crops.config import InspectConfig
from efafnet.pipelines.crops.inspect import run_inspect as inspect_store
from efafnet.pipelines.prediction.exported import ENDINGS, tell_exported


def run_inspect(config: InspectConfig) -> None:
    """Say what is there; ValueError for what is neither, or damaged."""
    path = Path(config.store)
    if path.suffix in ENDINGS and path.is_file():
        tell_exported(path)
    else:
        inspect_store(config)
