"""``efafnet study``: rows of settings, each trained with the same seeds, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efafnet.models.variants import VARIANTS
from efafnet.pipelines.runs.children import STAGE, reconcile
from efafnet.pipelines.runs.measured import precisions_of
from efafnet.pipelines.runs.run_set import Running, run_all
from efafnet.pipelines.runs.settings import automatic_name, names_of
from efafnet.pipelines.study.config import Plan, StudyConfig, plan_rows, runs_of
from efafnet.pipelines.study.measure import measure
from efafnet.pipelines.study.people import synthetic_people
from efafnet.pipelines.study.prices import priced, prices_of
from efafnet.pipelines.study.scale import scale_note
from efafnet.pipelines.study.sheet import SHEET_FILE, Sheet, sheet_of, to_json
from efafnet.pipelines.study.statistics import Comparison, compare
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs, open_inputs
from efafnet.pipelines.training.recording import fail_record, log_total, open_record
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord
from efafnet.platform import console
from efafnet.platform.configuration import absolute_paths, to_yaml
from efafnet.platform.consumption import Consumption
from efafnet.platform.mlflow_client import mlflow_client, points_now, quietly
from efafnet.platform.mlflow_pages import NOTE
from efafnet.platform.storage import write_json, write_text
from efafnet.platform.tracking import finish_run
from efafnet.tune_spaces.refused import refuse
from efafnet.tune_spaces.study import Study, find_study, load_study

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS = "runs"
"""Directory of the runs' directories, in the study's."""
RESULT = "result.json"
RESULT_ENDS = "\n\n---\n\n"
"""Between the result and what the study is, in its description in MLflow."""
UNEQUAL = {"max_samples": "rows need equal budgets; set it for all of them, on the command line"}
"""A key that no row may set, besides those that no space may."""
TABLE = "table.md"
"""The table as Markdown, in the study's directory."""


@dataclass(frozen=True)
class StudyResult:
    """How a study ended."""

    directory: Path
    found: Comparison
    sheet: Sheet
    failures: dict[str, str]
    """Why runs failed, by run name."""
    mlflow_run_id: str | None
    taken: Consumption | None = None
    """What all runs took; None without MLflow."""


def run_study(config: StudyConfig) -> int:
    """Run a study, show its table; 1 where runs failed."""
    result = study(config)
    result.sheet.show()
    if result.taken is not None and result.taken != Consumption():
        console.say(f"cost: {result.taken.text(config.cost.currency)} for all runs")
    console.say(f"table: {result.directory / TABLE}, everything at full precision: {result.directory / RESULT}")
    if result.failures:
        console.warn(f"{len(result.failures)} runs failed; the same command tries them again")
    return 1 if result.failures else 0


def study(config: StudyConfig) -> StudyResult:
    """Run what is left of a study and compare its rows.

    Raises:
        ValueError: the file, the settings, the stores or the directory do not fit together.
        OSError: no Ray, no tracking store, or a file system that refuses.
        KeyboardInterrupt: it was interrupted; the same command continues it.
    """
    config = absolute_paths(config)
    find_study(config.study)  # before people are drawn for it
    if config.data.train is None:
        config = config.model_copy(update={"data": synthetic_people(config)})
    inputs = open_inputs(config)
    rows = load_study(config.study, names_of(config, inputs))
    for row in rows.rows:
        refuse(rows.source, row.entries, UNEQUAL)
    config = config.model_copy(update={"name": automatic_name(config, rows.name, inputs.identity(config))})
    console.note(f"study {config.name}: {rows.about}")
    return compare_rows(config, inputs, rows)


def compare_rows(config: StudyConfig, inputs: Inputs, rows: Study, *, parent_run_id: str | None = None) -> StudyResult:
    """Run what is left of a study whose rows, name and paths are settled; errors as ``study``.

    Args:
        config: the study.
        inputs: its stores.
        rows: what is compared.
        parent_run_id: MLflow run that the study belongs to.
    """
    plans = plan_rows(rows, config, config.base(), inputs)
    directory = RunDirectory(config.run_dir)
    with directory.locked():
        record = directory.claim(inputs.identity(config), config.changeable())
        record = open_record(
            config, inputs, record, parent_run_id=parent_run_id, tags={STAGE: "study"}, about=_about(config, rows)
        )
        directory.record(record, to_yaml(config))
        try:
            return _conduct(config, inputs, rows, plans, record)
        except BaseException as error:
            fail_record(record, interrupted=isinstance(error, KeyboardInterrupt))
            raise


def _about(config: StudyConfig, rows: Study) -> str:
    """What the study is, for its description in MLflow."""
    listed = "\n".join(f"1. {row.name}" for row in rows.rows)
    seeds, about = ", ".join(map(str, seeds_of(config))), rows.about.rstrip(".")
    return f"Study `{config.name}`: {about}. Each row is trained with the same seeds ({seeds}):\n\n{listed}\n"


def seeds_of(config: StudyConfig) -> list[int]:
    """The seeds of every row."""
    return list(range(config.seed, config.seed + config.seeds))


def _conduct(config: StudyConfig, inputs: Inputs, rows: Study, plans: Sequence[Plan], record: RunRecord) -> StudyResult:
    """Run all rows with all seeds, compare them, and write down what came out."""
    seeds = seeds_of(config)
    metric = config.validation.metric or inputs.metric
    place = config.run_dir / RUNS
    runs = runs_of(plans, seeds, place)
    reconcile(record, place, config)
    how = Running(
        parent_run_id=record.mlflow_run_id,
        metric=metric,
        concurrency=config.concurrency,
        retries=config.retries,
        keep=config.keep == "all",
        tags={STAGE: "repeat"},
    )
    failures = run_all(list(runs.values()), inputs, how)
    names = [plan.row.name for plan in plans]
    measured = measure(names, runs, inputs, metric=metric, bootstrap=config.bootstrap)
    found = compare(
        measured, rows.baseline, confidence=config.confidence, scatter=config.scatter, resolve=config.resolve
    )
    told = circumstances(config, inputs, plans, seeds, metric, precisions_of(runs.values()))
    prices = prices_of(measured, runs, config.cost.currency)
    sheet = priced(sheet_of(f"{rows.name}: {rows.about}", plans, found, told, failures), names, found, prices)
    facts = {"study": rows.name, "about": rows.about, "seeds": list(seeds), "metric": metric, "measured_on": told,
             "failures": failures, "mlflow_run_id": record.mlflow_run_id,
             "cost": None if prices is None else prices.to_json(found)}  # fmt: skip
    content = to_json(plans, measured, found, sheet, facts)
    write_json(config.run_dir / RESULT, content)
    write_text(config.run_dir / TABLE, sheet.markdown())
    _tell_mlflow(record, rows, plans, found, content, sheet)
    return StudyResult(config.run_dir, found, sheet, failures, record.mlflow_run_id, log_total(record))


def circumstances(
    config: TrainConfig, inputs: Inputs, plans: Sequence[Plan], seeds: Sequence[int], metric: str, precision: str
) -> list[str]:
    """On what the figures were measured: a table without this says nothing."""
    assert inputs.val is not None, "rows are compared on a validation store"
    plan = inputs.plan(config)
    samples = plan.steps * config.batch_size
    images = inputs.val.manifest.counts.images
    named = [VARIANTS[plan.row.network] for plan in plans if plan.config is not None and plan.row.network is not None]
    papers = " (the paper: 150 of COCO)" if named else ""
    optimizer, schedule = config.optimizer, config.schedule
    return [
        f"measured: {metric} in percent on {inputs.val.path.name}, {inputs.val.num_persons} persons in {images} images "
        f"(digest {inputs.val.digest[:12]}), at the end of each run; trained on {inputs.train.num_persons} persons of "
        f"{inputs.train.path.name} (digest {inputs.train.digest[:12]}), data sets "
        f"{', '.join(sorted({source.data_set for source in inputs.train.manifest.sources}))}",
        f"budget: {samples} samples per run, {samples / inputs.train.num_persons:.3g} epochs{papers}; "
        f"batch {config.batch_size}, peak rate {optimizer.lr:g}, {schedule.kind}, {precision}; seeds "
        f"{', '.join(map(str, seeds))}, the same for all rows",
        *(
            [
                "training sets: another for each seed, the same for all rows, drawn from the store's row groups with "
                "replacement; figures are lower than with the whole store, and intervals are for new training sets too"
            ]
            if config.resample == "train"
            else []
        ),
        *([f"every run goes on from the weights of {config.init.name}"] if config.init is not None else []),
        *([scale_note(named, config)] if named else []),
    ]


def _tell_mlflow(
    record: RunRecord,
    rows: Study,
    plans: Sequence[Plan],
    found: Comparison,
    content: dict[str, Any],
    sheet: Sheet,
) -> None:
    """Put the result on the study's own run, and end it."""
    uri, run_id = record.tracking_uri, record.mlflow_run_id
    if uri is None or run_id is None:
        return

    def tell(client: MlflowClient) -> None:
        about = client.get_run(run_id).data.tags.get(NOTE, "").rpartition(RESULT_ENDS)[2]
        client.set_tag(run_id, NOTE, f"{sheet.summary()}{RESULT_ENDS}{about}")
        client.log_dict(run_id, content, SHEET_FILE)
        client.log_text(run_id, sheet.markdown(), f"study/{TABLE}")
        client.log_text(run_id, rows.text, f"study/{rows.name}.yaml")
        keys = {plan.row.name: plan.row.key for plan in plans}
        figures = {f"mean/{keys[row.name]}": row.mean for row in found.rows}
        figures |= {f"difference/{keys[row.name]}": row.difference.value for row in found.rows if row.difference}
        client.log_batch(run_id, metrics=points_now(figures))

    quietly(lambda: tell(mlflow_client(uri)), "logging the study's result")
    finish_run(uri, run_id)
