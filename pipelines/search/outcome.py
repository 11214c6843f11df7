"""What a search found: the best trial's settings as a preset, a table, and charts for the search's run in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from efafnet.pipelines.runs.settings import with_settings
from efafnet.pipelines.search.naming import describe, short_names, short_value
from efafnet.pipelines.search.pareto import COST, front
from efafnet.pipelines.search.tracking import STATES, SearchTracking
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.recording import log_total
from efafnet.platform import console
from efafnet.platform.configuration import resolve, to_yaml
from efafnet.platform.consumption import Consumption
from efafnet.platform.storage import write_json, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEST = "best.yaml"
"""Preset of the best trial's settings, in the search's directory."""
RESULT = "result.json"
"""What came out, in the search's directory."""


@dataclass(frozen=True)
class RankedTrial:
    """A trial that ran to its end."""

    number: int
    value: float
    """Its figure."""
    settings: dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    directory: Path
    counts: dict[str, int]
    """Trials by how they ended: complete, stopped early, failed, interrupted."""
    best_number: int | None
    best_value: float | None
    """Figure of the best complete trial at the end of its budget."""
    best_settings: dict[str, Any]
    best_preset: Path | None
    """What ``efafnet train`` takes."""
    mlflow_run_id: str | None
    ranking: tuple[RankedTrial, ...] = ()
    """Complete trials, best first."""
    front: tuple[int, ...] = ()
    """Where the figure was weighed against a cost: the trials that none beats in both, the cheapest first."""


def conclude(tracking: SearchTracking) -> SearchResult:
    """Write the best settings as a preset and collect the result."""
    config, trials, best = tracking.config, tracking.ledger.own(), tracking.ledger.best()
    counts = {name: sum(trial.state.name == state for trial in trials) for state, name in STATES.items()}
    preset = _write_preset(tracking, best) if best is not None else None
    result = SearchResult(
        directory=config.run_dir,
        counts=counts,
        best_number=best.number if best else None,
        best_value=best.value if best else None,
        best_settings=dict(best.user_attrs["settings"]) if best else {},
        best_preset=preset,
        mlflow_run_id=tracking.record.mlflow_run_id,
        ranking=_ranking(trials),
        front=tuple(front(trials)) if config.search.against != "none" else (),
    )
    _write_result(tracking, result)
    tracking.tidy()
    tracking.tell_study()
    tracking.log_progress()
    tracking.tell_parent(lambda client, run_id: _tell(client, run_id, tracking, result), "logging the search's result")
    return result


def _ranking(trials: Sequence[FrozenTrial]) -> tuple[RankedTrial, ...]:
    complete = [
        RankedTrial(trial.number, trial.value, dict(trial.user_attrs["settings"]))
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    return tuple(sorted(complete, key=lambda trial: (-trial.value, trial.number)))


def _write_result(tracking: SearchTracking, result: SearchResult) -> None:
    """Write the result where a search's directory keeps it, for programs."""
    content = {
        "trials": result.counts,
        "best_trial": result.best_number,
        "best_value": result.best_value,
        "best_settings": result.best_settings,
        "best_name": describe(result.best_settings, tracking.searched),
        "front": list(result.front),
        "mlflow_run_id": result.mlflow_run_id,
    }
    write_json(tracking.config.run_dir / RESULT, content)


def _write_preset(tracking: SearchTracking, best: FrozenTrial) -> Path:
    config = tracking.config
    tree = with_settings(config.base(), best.user_attrs["settings"]) | {"name": f"{config.name}-best"}
    settings = resolve(TrainConfig, tree)
    head = f"# Trial {best.number} of the search {config.name}: {tracking.metric} {best.value:.4f}, one run.\n"
    path = config.run_dir / BEST
    write_text(path, head + to_yaml(settings))
    return path


def show(tracking: SearchTracking, result: SearchResult) -> None:
    """Print all trials, best first, and what to do next."""
    config, searched = tracking.config, tracking.searched
    names = short_names(searched)
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
    trials = sorted(tracking.ledger.own(), key=lambda trial: (order.get(trial.state, 2), -_figure(trial), trial.number))
    rows = [
        [
            trial.number,
            STATES[trial.state.name],
            f"{_figure(trial):.4f}" if trial.values or trial.intermediate_values else "",
            max(trial.intermediate_values, default=""),
            *(short_value(_setting(trial, key)) for key in names),
            _brief(trial.user_attrs.get("reason", "")),
        ]
        for trial in trials
    ]
    columns = ["trial", "end", tracking.metric, "samples", *names.values(), "why"]
    if config.search.against != "none":
        columns = [*columns[:3], config.search.against, "front", *columns[3:]]
        rows = [[*row[:3], *_weighed(trial, result), *row[3:]] for row, trial in zip(rows, trials, strict=True)]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    console.table(columns, rows, title=f"search {config.name} over {tracking.space.name}")
    if above := tracking.ledger.infeasible():
        console.say(f"{above} more were drawn above search.limit, and not trained")
    if result.best_preset is None:
        console.say("no trial ran to its end: there is no best one")
        _show_cost(tracking, result)
        return
    if result.front:
        console.say(f"front: trials {', '.join(map(str, result.front))} are beaten by none in both "
                    f"{tracking.metric} and {config.search.against}; one run each")  # fmt: skip
    _show_cost(tracking, result)
    told = describe(result.best_settings, searched)
    console.say(f"best: trial {result.best_number}, {tracking.metric} {result.best_value:.4f}, {told}")
    if config.promote.finalists == 0:
        console.say("one run per setting does not tell small differences from luck: promote.finalists=3 repeats the "
                    "best with new seeds")  # fmt: skip
    console.say(f"train it as it is: efafnet train {result.best_preset} seed=1 name=…")


def _show_cost(tracking: SearchTracking, result: SearchResult) -> None:
    """Say what all trials took, and what a point gained over the first trial came to."""
    taken, currency = log_total(tracking.record), tracking.config.cost.currency
    if taken is None or taken == Consumption():
        return
    gained = gained_over_first(tracking.ledger.own(), result.best_value)
    each = f"; {taken.per_point(gained, currency)} per point gained over trial 0" if gained else ""
    console.say(f"cost: {taken.text(currency)} for all trials{each}")


def gained_over_first(trials: Sequence[FrozenTrial], best: float | None) -> float | None:
    """Points (hundredths) between the first trial and the best; None where the first is no measure, or none was gained.

    The first trial is the space's start point, if it has one.
    """
    first = next((trial for trial in trials if trial.number == 0), None)
    if best is None or first is None or first.state != TrialState.COMPLETE:
        return None
    points = 100 * (best - _figure(first))
    return points if points > 0 else None


def _weighed(trial: FrozenTrial, result: SearchResult) -> list[str]:
    cost = trial.user_attrs.get(COST)
    return ["" if cost is None else f"{cost:.3g}", "front" if trial.number in result.front else ""]


def _figure(trial: FrozenTrial) -> float:
    values = trial.intermediate_values
    return float(values[max(values)]) if values else float("-inf")


def _brief(reason: str, limit: int = 70) -> str:
    first = reason.partition(";")[0]
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _setting(trial: FrozenTrial, key: str) -> Any:
    return trial.user_attrs.get("settings", {}).get(key, "")


def _tell(client: MlflowClient, run_id: str, tracking: SearchTracking, result: SearchResult) -> None:
    """Put the result on the search's run: tags, files and charts; its figures stand there already."""
    client.log_dict(run_id, {"settings": result.best_settings, "trial": result.best_number}, "search/best.json")
    client.log_text(run_id, tracking.space.text, f"search/{tracking.space.name}.yaml")
    if result.best_preset is not None and result.best_value is not None:
        client.log_artifact(run_id, str(result.best_preset), "search")
        client.set_tag(run_id, "efafnet.best_trial", str(result.best_number))
    # Only where somebody looks at it: what draws charts takes seconds to import.
    from efafnet.pipelines.search.charts import page_of, study_charts
    from efafnet.pipelines.search.study_file import study_from_json, study_to_json

    trials = tracking.ledger.own()
    names = {trial.number: describe(trial.user_attrs.get("settings", {}), tracking.searched) for trial in trials}
    charts = study_charts(study_from_json(study_to_json(trials)), names)
    client.log_text(run_id, page_of(charts, f"search {tracking.config.name}"), "search/charts.html")
