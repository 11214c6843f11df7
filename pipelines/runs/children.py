"""The runs of a set in MLflow: children of the set's own run, reconciled after a kill, marked when stopped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.recording import children, fail_record, send_kept
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord
from efafnet.platform.mlflow_client import mlflow_client, quietly

STAGE = "efafnet.stage"
"""Tag that says what a run is for: search, trial, longer, study, repeat."""


def reconcile(parent: RunRecord, directory: Path, config: TrainConfig) -> None:
    """Send what runs kept while MLflow was away, and remove those that a kill left before their first note.

    Args:
        parent: the set's own run.
        directory: holds the run directories; none of them may be running.
        config: says where MLflow is.
    """
    send_kept(directory, config)
    remove_orphans(parent, directory)


def mark_stopped(run_dirs: Iterable[Path], *, interrupted: bool = True) -> None:
    """Say in MLflow that runs stopped before their end."""
    for run_dir in run_dirs:
        record = RunDirectory(run_dir).known()
        if record is not None:
            fail_record(record, interrupted=interrupted)


def remove_orphans(parent: RunRecord, directory: Path) -> None:
    """Remove those children of an MLflow run in ``directory`` that a kill left between their creation and the first
    note on disk: they run, have no figure, and the run directory is there and knows another run or none.

    What has figures or ended stays, whatever is on disk: directories are tidied away, and their runs are not.
    """
    uri, parent_id = parent.tracking_uri, parent.mlflow_run_id
    if uri is None or parent_id is None:
        return

    def remove() -> None:
        client = mlflow_client(uri)
        for run in children(client, parent_id):
            # By the last two names: the whole may have been moved.
            place = Path(run.data.tags.get("efafnet.run_dir", ""))
            if place.parent.name != directory.name or run.info.status != "RUNNING" or run.data.metrics:
                continue
            known = RunDirectory(directory / place.name).known()
            if known is not None and run.info.run_id != known.mlflow_run_id:
                client.delete_run(run.info.run_id)

    quietly(remove, "looking for what a kill left")
