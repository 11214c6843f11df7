"""What people see of a run in MLflow's pages: the address that opens it, and the description at its top."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence

from efafnet.platform.mlflow_client import mlflow_client, quietly
from efafnet.platform.provenance import code_version

NOTE = "mlflow.note.content"
"""The tag that MLflow shows, as Markdown, as the description of an experiment or a run."""
ABOUT = """Trainings, searches and studies of pose networks, written by efafnet.

- **Runs**: a search or a study is a run whose trials lie below it; the description of each says what it is and how to
  make it again, and its artifact `config.yaml` holds every setting.
- **Columns worth having**: `best/ap` (the figure of the checkpoint to use, also of a search), `val/ap` (the newest),
  `train/loss`, and the parameters that differ.
- **Compare**: mark runs, then Compare. It begins with the first three, by name, of the parameters that differ, and with
  `train/loss`: choose the others, and `best/ap` under Metrics; or `efafnet report` for one page with intervals.
- Where this page shows traces instead of runs, choose *Model training*.
"""
"""The description of an experiment that was created here."""

TRAINING_VIEW = "workflowType=machine_learning"
"""MLflow 3 shows experiments as traces of language models unless its address asks for trainings."""
UI = "http://127.0.0.1:5000"
CODE_WIDTH = 80
"""Columns of a line of code in a description."""


def page_of(uri: str, run_id: str) -> str:
    """The address that opens a run; for a store without a server also the command that serves it.

    Empty where MLflow does not answer. Names and passwords in ``uri`` are cut by whoever shows it.
    """
    found: list[str] = []

    def ask() -> None:
        experiment = mlflow_client(uri).get_run(run_id).info.experiment_id
        page = f"/#/experiments/{experiment}/runs/{run_id}?{TRAINING_VIEW}"
        serving = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        found.append(f"{uri}{page}" if uri.startswith("http") else f"{UI}{page} after: {serving}")

    quietly(ask, f"asking for run {run_id}")
    return found[0] if found else ""


def description(what: str, facts: Mapping[str, str], again: Sequence[str]) -> str:
    """A description in Markdown: what it is, facts of it, and the commands that make it again."""
    code = code_version()
    commit = str(code["git_commit"] or "not in git")[:12] + (" with changes" if code["git_dirty"] else "")
    rows = {**facts, "code": f"efafnet {code['version']}, commit {commit}, digest {code['source_digest']}"}
    lines = [what, "", *(f"- **{name}**: {text}" for name, text in rows.items())]
    return "\n".join([*lines, "", "To make it again:", "```", *map(folded, again), "```"] if again else lines)


def folded(command: str) -> str:
    """A command in lines that MLflow's page has room for: a longer one makes all of the page wider than the window,
    and takes the figures beside their names out of sight."""
    try:
        words = shlex.split(command)
    except ValueError:  # it was too long to be kept whole
        return command
    lines = [""]
    for word in words:
        quoted = shlex.quote(word)
        if lines[-1] and len(lines[-1]) + len(quoted) >= CODE_WIDTH:
            lines.append(" ")
        lines[-1] += f" {quoted}" if lines[-1] else quoted
    return " \\\n".join(lines)


def narrowed(text: str) -> str:
    """A YAML text in lines that MLflow's page has room for: longer ones go on below, further to the right."""
    lines = []
    for line in text.strip().splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        more = "# " if line.lstrip().startswith("#") else "    "
        lines += textwrap.wrap(
            line, CODE_WIDTH, subsequent_indent=indent + more, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)
