"""What a search found: the best trial's settings as a preset, a table, and pictures for the search's run in MLflow."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from efafnet.pipelines.search.books import STATES, Books
from efafnet.pipelines.search.config import with_settings
from efafnet.pipelines.search.naming import describe, short_names, short_value
from efafnet.pipelines.search.pareto import COST, both_objectives, front
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


def conclude(books: Books) -> SearchResult:
    """Write the best settings as a preset and collect the result."""
    config, trials, best = books.config, books.ledger.own(), books.ledger.best()
    counts = {name: sum(trial.state.name == state for trial in trials) for state, name in STATES.items()}
    preset = _write_preset(books, best) if best is not None else None
    result = SearchResult(
        directory=config.run_dir,
        counts=counts,
        best_number=best.number if best else None,
        best_value=best.value if best else None,
        best_settings=dict(best.user_attrs["settings"]) if best else {},
        best_preset=preset,
        mlflow_run_id=books.record.mlflow_run_id,
        ranking=_ranking(trials),
        front=tuple(front(trials)) if config.search.against != "none" else (),
    )
    _write_result(books, result)
    books.tidy()
    books.tell_study()
    books.tell_standing()
    books.tell_parent(lambda client, run_id: _tell(client, run_id, books, result), "logging the search's result")
    return result


def _ranking(trials: Sequence[FrozenTrial]) -> tuple[RankedTrial, ...]:
    complete = [
        RankedTrial(trial.number, trial.value, dict(trial.user_attrs["settings"]))
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    return tuple(sorted(complete, key=lambda trial: (-trial.value, trial.number)))


def _write_result(books: Books, result: SearchResult) -> None:
    """Write the result where a search's directory keeps it, for programs."""
    content = {
        "trials": result.counts,
        "best_trial": result.best_number,
        "best_value": result.best_value,
        "best_settings": result.best_settings,
        "best_name": describe(result.best_settings, books.searched),
        "front": list(result.front),
        "mlflow_run_id": result.mlflow_run_id,
    }
    write_json(books.config.run_dir / RESULT, content)


def _write_preset(books: Books, best: FrozenTrial) -> Path:
    config = books.config
    tree = with_settings(config.base(), best.user_attrs["settings"]) | {"name": f"{config.name}-best"}
    settings = resolve(TrainConfig, tree)
    head = f"# Trial {best.number} of the search {config.name}: {books.metric} {best.value:.4f}, one run.\n"
    path = config.run_dir / BEST
    write_text(path, head + to_yaml(settings))
    return path


def show(books: Books, result: SearchResult) -> None:
    """Print all trials, best first, and what to do next."""
    config, searched = books.config, books.searched
    names = short_names(searched)
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
    trials = sorted(books.ledger.own(), key=lambda trial: (order.get(trial.state, 2), -_figure(trial), trial.number))
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
    columns = ["trial", "end", books.metric, "samples", *names.values(), "why"]
    if config.search.against != "none":
        columns = [*columns[:3], config.search.against, "front", *columns[3:]]
        rows = [[*row[:3], *_weighed(trial, result), *row[3:]] for row, trial in zip(rows, trials, strict=True)]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    console.table(columns, rows, title=f"search {config.name} over {books.space.name}")
    if result.best_preset is None:
        console.say("no trial ran to its end: there is no best one")
        _show_cost(books, result)
        return
    if result.front:
        console.say(f"front: trials {', '.join(map(str, result.front))} are beaten by none in both {books.metric} and "
                    f"{config.search.against}; one run each")  # fmt: skip
    _show_cost(books, result)
    told = describe(result.best_settings, searched)
    console.say(f"best: trial {result.best_number}, {books.metric} {result.best_value:.4f}, {told}")
    if config.promote.finalists == 0:
        console.say("one run per setting does not tell small differences from luck: promote.finalists=3 repeats the "
                    "best with new seeds")  # fmt: skip
    console.say(f"train it as it is: efafnet train {result.best_preset} seed=1 name=…")


def _show_cost(books: Books, result: SearchResult) -> None:
    """Say what all trials took, and what a point gained over the first trial came to."""
    taken, currency = log_total(books.record), books.config.cost.currency
    if taken is None or taken == Consumption():
        return
    gained = gained_over_first(books.ledger.own(), result.best_value)
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


def _tell(client: MlflowClient, run_id: str, books: Books, result: SearchResult) -> None:
    """Put the result on the search's run: tags, files and pictures; its figures stand there already."""
    client.log_dict(run_id, {"settings": result.best_settings, "trial": result.best_number}, "search/best.json")
    client.log_text(run_id, books.space.text, f"search/{books.space.name}.yaml")
    if result.best_preset is not None and result.best_value is not None:
        client.log_artifact(run_id, str(result.best_preset), "search")
        client.set_tag(run_id, "efafnet.best_trial", str(result.best_number))
    with tempfile.TemporaryDirectory() as place:
        for path in _pictures(books, Path(place)):
            client.log_artifact(run_id, str(path), "search")


def _pictures(books: Books, place: Path) -> Iterator[Path]:
    """Optuna's views as PNG, which MLflow's pages show at a click."""
    import matplotlib as mpl

    mpl.use("agg")
    from optuna.visualization import matplotlib as view

    study, against = books.ledger.study, books.config.search.against
    if against != "none":
        both = both_objectives(books.ledger.own())
        drawn = partial(view.plot_pareto_front, target_names=[books.metric, against])
        if both.best_trials and _draw(drawn, both, place / "front.png"):
            yield place / "front.png"
    complete = [trial for trial in books.ledger.own() if trial.state == TrialState.COMPLETE]
    metric = books.metric
    # Optuna leaves out every trial without one of the settings: in a space with options that would be most.
    shared = sorted(set.intersection(*(set(trial.params) for trial in complete))) if complete else []
    drawings: dict[str, tuple[Callable[..., Any], int]] = {
        "history": (partial(view.plot_optimization_history, target_name=metric), 1),
        "intermediate_values": (view.plot_intermediate_values, 1),
        "importance": (partial(view.plot_param_importances, target_name=metric), 4),
        "slices": (partial(view.plot_slice, target_name=metric), 2),
        "parallel_coordinates": (partial(view.plot_parallel_coordinate, params=shared or None, target_name=metric), 2),
    }
    for name, (draw, needed) in drawings.items():
        if len(complete) >= needed and _draw(draw, study, place / f"{name}.png"):
            yield place / f"{name}.png"


def _draw(draw: Callable[..., Any], study: Any, path: Path) -> bool:
    from matplotlib import pyplot

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draw(study)
        pyplot.gcf().savefig(path, dpi=110, bbox_inches="tight")
    except (ValueError, RuntimeError, ZeroDivisionError):
        return False  # nothing to rate, for example where all figures are equal
    finally:
        pyplot.close("all")
    return True
