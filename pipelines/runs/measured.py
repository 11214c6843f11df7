"""What the runs of a set left on disk: their figures, and their predictions on the validation store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from efafnet.models.cost import multiply_adds
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.config import EvaluateConfig, ScoringConfig, WorkersConfig
from efafnet.pipelines.evaluation.evaluate import PREDICTIONS, evaluate
from efafnet.pipelines.evaluation.results_file import reference_of
from efafnet.pipelines.evaluation.trained import open_store
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.rundir import RunDirectory, TrainResult
from efafnet.platform.presence import is_there
from efafnet.platform.storage import read_json, sha256_bytes, sha256_file, write_text

_FIGURES_ONLY = ScoringConfig(bootstrap=0, errors=False)
_LITTLE = 3e10
"""Multiply-adds of a store's predictions that one core makes itself, in seconds: more of them would go by before Ray
Data's processes had imported what this one has."""


def predict_validation(config: TrainConfig, result: TrainResult) -> None:
    """Leave the run's predictions on the validation store beside its figures, for the bootstrap over images."""
    file = config.run_dir / PREDICTIONS
    if is_there(file) or config.data.val is None:
        return
    store = open_store(config.data.val)
    # Rows are compared in one arithmetic: on GPUs where they were trained so, which Ray's workers may have and this
    # process has not, and else on CPUs.
    on_cpus = config.worker.gpu == "no"
    workers = WorkersConfig(
        count=0 if on_cpus and _is_little(config, store) else config.workers,
        cpus=config.worker.threads,
        gpu="no" if on_cpus else "auto",
        reader=config.reader,
    )
    wanted = EvaluateConfig(
        checkpoint=result.checkpoint, data=config.data.val, workers=workers, scoring=_FIGURES_ONLY, overlays=0
    )
    done = evaluate(wanted, store)
    content = json.dumps(done.results, separators=(",", ":")) + "\n"
    # As sha256sum writes it, and before the file: that it is there says that the run is measured.
    write_text(_digest_file(file), f"{sha256_bytes(content.encode())}  {file.name}\n")
    write_text(file, content)


def _is_little(config: TrainConfig, store: CropStore) -> bool:
    """Whether one core predicts a store in seconds."""
    crops = store.num_persons * (2 if config.test.flip_test else 1)
    return crops * multiply_adds(config.network, store.skeleton.num_joints, config.input) <= _LITTLE


def has_images(inputs: Inputs) -> bool:
    """Whether figures can be told image by image: OKS AP can, PCKh is not kept so."""
    return inputs.val is not None and not reference_of(inputs.val.path, inputs.val.digest).by_person


def is_done(run: TrainConfig, by_image: bool) -> bool:
    """Whether a run has ended and is measured."""
    return is_there(RunDirectory(run.run_dir).result_file) and (not by_image or is_there(run.run_dir / PREDICTIONS))


def precisions_of(runs: Iterable[TrainConfig]) -> str:
    """The arithmetic that runs began with; more than one, as in ``bf16, fp32``, where machines were unlike."""
    records = [record for run in runs if (record := RunDirectory(run.run_dir).known()) is not None]
    return ", ".join(sorted({str(record.identity["precision"]) for record in records}))


def figure_of(run: TrainConfig, metric: str) -> float:
    """The validation figure at the end of a run that is done."""
    result = RunDirectory(run.run_dir).result()
    assert result is not None, f"run {run.name} is not done"
    return float(result.metrics[metric])


def predictions_of(run: TrainConfig) -> list[dict[str, Any]]:
    """Its COCO results on the validation store; ValueError where they are not what was written."""
    file = run.run_dir / PREDICTIONS
    known = _digest_file(file)
    if is_there(known) and known.read_text(encoding="utf-8").split()[:1] != [sha256_file(file)]:
        raise ValueError(
            f"{file} is damaged (sha256sum -c {known.name}); remove both, and the same command remakes them"
        )
    return list(read_json(file))


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
