"""What MLflow's page of a run says in words: what it is, on which data, from which code, and how to make it again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.introduction import network_text, store_text
from efafnet.platform.mlflow_pages import description
from efafnet.platform.provenance import code_version, command_line

SETTINGS = "config.yaml"
"""The artifact that holds every setting, from the run's beginning on."""


def model_name(config: TrainConfig) -> str:
    """A trained network's name in MLflow: ``efafnet-r50-256x192``."""
    return f"{config.network.short_name}-{config.input}"


def describe_run(config: TrainConfig, inputs: Inputs, run_id: str, about: str = "") -> str:
    """The description of a run in Markdown.

    Args:
        config: the training; or what the runs of a search or a study have in common.
        inputs: its stores.
        run_id: the run in MLflow.
        about: what a search or a study is, in a sentence; empty for a training.
    """
    facts = {"training data": store_text("train", inputs.train).removeprefix("train: ")}
    if inputs.val is not None:
        facts["validation data"] = store_text("val", inputs.val).removeprefix("val: ")
    if not about:
        facts = {"network": network_text(config, inputs), **facts}
    facts["protocol"] = inputs.protocol(config)
    facts["files"] = str(config.run_dir)
    return description(about or f"Training of {model_name(config)}.", facts, _again(run_id, alone=not about))


def _again(run_id: str, *, alone: bool) -> Sequence[str]:
    """Commands that make the run again: what was typed, or for a training that a program began, its settings."""
    commit, typed = code_version()["git_commit"], command_line(sys.argv)
    commands = [f"git checkout {commit}"] if commit else []
    if typed is not None and typed.startswith("efafnet "):
        return [*commands, f"cd {Path.cwd()}", typed]
    fetched = [f"mlflow artifacts download -r {run_id} -a {SETTINGS} -d .", f"efafnet train ./{SETTINGS} name=again"]
    return [*commands, *fetched] if alone else commands
