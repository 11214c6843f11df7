"""``efafnet tune`` to its end: a search, and where asked from its best trials to a winner.

Many short runs (the search), fewer longer ones, the finalists repeated with seeds that took no part in choosing them
and compared with the settings as given, the winner trained in full. Each stage is a set of training runs with lasting
names: the same command again goes on wherever it was killed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efafnet.pipelines.runs.children import STAGE, reconcile
from efafnet.pipelines.runs.measured import figure_of
from efafnet.pipelines.runs.run_set import Running, run_all
from efafnet.pipelines.runs.settings import with_settings
from efafnet.pipelines.search.config import TuneConfig
from efafnet.pipelines.search.naming import describe
from efafnet.pipelines.search.outcome import RankedTrial, SearchResult
from efafnet.pipelines.search.tune import run_tune
from efafnet.pipelines.study.config import StudyConfig, row_config
from efafnet.pipelines.study.statistics import Comparison, RowResult, rank_correlation
from efafnet.pipelines.study.study import StudyResult, compare_rows
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs, open_inputs
from efafnet.pipelines.training.rundir import RunDirectory
from efafnet.pipelines.training.start import run_train
from efafnet.platform import console
from efafnet.platform.configuration import absolute_paths, resolve, to_yaml
from efafnet.platform.storage import write_text
from efafnet.tune_spaces.space import Entry, Fixed
from efafnet.tune_spaces.study import Study, StudyRow

WINNER = "winner.yaml"
"""Preset of the winner's full run, in the search's directory."""
AS_GIVEN = "as given"
"""Row of the settings that the search started from."""


@dataclass(frozen=True)
class Promotion:
    """How the finalists ended."""

    finals: StudyResult
    winner: RowResult
    preset: Path
    """What the winner is trained in full with."""


def run_promoted(config: TuneConfig) -> int:
    """Search, show what was found, and promote the best of it where asked; 1 where no trial or not every run of the
    finals ran to its end."""
    config = absolute_paths(config)
    found = run_tune(config)
    if not found.ranking:
        if config.promote.finalists:
            console.warn("no trial ran to its end: there is nothing to promote")
        return 1
    if config.promote.finalists == 0:
        return 0
    promotion = promote(config.model_copy(update={"name": found.directory.name}), found)
    show(promotion)
    if config.promote.full:
        run_train(resolve(TrainConfig, _winners_tree(config, found, promotion.winner)))
    return 1 if promotion.finals.failures else 0


def promote(config: TuneConfig, found: SearchResult) -> Promotion:
    """Choose finalists among a search's trials, repeat them, and name the winner.

    Args:
        config: the search, its name and paths settled.
        found: what it found; at least one complete trial.

    Raises:
        ValueError, OSError, KeyboardInterrupt: as ``study``.
    """
    inputs = open_inputs(config)
    samples = middle_samples(config, inputs)
    chosen = list(found.ranking[: config.promote.longer or config.promote.finalists])
    if config.promote.longer:
        chosen = _run_longer(config, inputs, chosen, samples, found.mlflow_run_id)[: config.promote.finalists]
    finals = compare_rows(
        finals_config(config, samples), inputs, finals_study(config, chosen), parent_run_id=found.mlflow_run_id
    )
    if not finals.found.rows:
        reason = next(iter(finals.failures.values()), "")
        raise ValueError(f"every run of the finals failed: {reason}; its logs are in {finals.directory}/runs")
    winner = winner_of(finals.found.rows, config.promote.repeats)
    preset = found.directory / WINNER
    settings = resolve(TrainConfig, _winners_tree(config, found, winner))
    head = f"# {winner.name}, the winner of the search {config.name} over {winner.runs} new seeds, in full.\n"
    write_text(preset, head + to_yaml(settings))
    return Promotion(finals, winner, preset)


def winner_of(rows: Sequence[RowResult], repeats: int) -> RowResult:
    """The row with the highest mean among those that have all their ``repeats``, or among those with most runs where
    none has: the luckiest of few runs is no winner."""
    full = min(repeats, max(row.runs for row in rows))
    return max((row for row in rows if row.runs >= full), key=lambda row: row.mean)


def middle_samples(config: TuneConfig, inputs: Inputs) -> int:
    """Training samples of a longer run and of a repeat.

    Raises:
        ValueError: a full run would be shorter than a trial.
    """
    trial = inputs.plan(config).steps * config.batch_size
    whole = config.model_copy(update={"max_samples": config.promote.full_samples})
    full = inputs.plan(whole).steps * config.batch_size
    if full < trial:
        raise ValueError(
            f"promote.full_samples = {config.promote.full_samples}: a full run cannot be shorter than a trial's "
            f"{trial}; raise it, or lower max_samples"
        )
    return config.promote.samples or round(math.sqrt(trial * full))


def _run_longer(
    config: TuneConfig, inputs: Inputs, trials: Sequence[RankedTrial], samples: int, parent: str | None
) -> list[RankedTrial]:
    """Run each trial's settings once more, longer, with the same seed; returns them in their new order."""
    place = config.run_dir / "longer"
    record = RunDirectory(config.run_dir).known()
    assert record is not None, "the search has left its record"
    reconcile(record, place, config)
    runs = {}
    for trial in trials:
        settings = {**trial.settings, "max_samples": samples}
        run = row_config(config, config.base(), StudyRow("", 0), settings)
        title = f"longer: #{trial.number} {describe(trial.settings, trial.settings)}"
        tracking = run.tracking.model_copy(update={"run_name": title})
        update = {"name": f"trial-{trial.number:04d}", "runs": place, "tracking": tracking}
        runs[trial.number] = run.model_copy(update=update)
    console.note(f"{len(runs)} trials run longer, {samples} samples each")
    metric = config.validation.metric or inputs.metric
    how = Running(parent, metric, config.search.concurrency, config.search.retries, tags={STAGE: "longer"})
    failed = run_all(list(runs.values()), inputs, how)
    left = [trial for trial in trials if runs[trial.number].name not in failed]
    if not left:
        raise ValueError(f"every longer run failed: {next(iter(failed.values()))}; its logs are in {place}")
    figures = {trial.number: figure_of(runs[trial.number], metric) for trial in left}
    correlation = rank_correlation([trial.value for trial in left], list(figures.values()))
    order = "too few to tell" if correlation is None else f"{correlation:+.2f}"
    console.say(f"rank correlation of the trials' figures with those of their longer runs ({len(left)}): {order}")
    return sorted(left, key=lambda trial: -figures[trial.number])


def finals_config(config: TuneConfig, samples: int) -> StudyConfig:
    """The finals as a study: the search's settings, longer, with seeds that the search has not seen."""
    search, promotion = config.search, config.promote
    own = {
        "name": "finals", "runs": str(config.run_dir), "study": "finals", "seed": config.seed + 1,
        "seeds": promotion.repeats, "max_samples": samples, "concurrency": search.concurrency,
        "retries": search.retries,
    }  # fmt: skip
    tree = with_settings(config.base(), {"tracking.run_name": f"{config.name} finals"})
    return resolve(StudyConfig, tree | own)


def finals_study(config: TuneConfig, trials: Sequence[RankedTrial]) -> Study:
    """The finalists as the rows of a study, compared with the settings as given."""
    rows = [StudyRow(AS_GIVEN, 0, note="the settings that the search started from")]
    for trial in trials:
        entries = tuple(Entry(key, 0, Fixed(value), key) for key, value in trial.settings.items())
        told = describe(trial.settings, trial.settings)
        rows.append(StudyRow(f"trial {trial.number:04d}", 0, entries=entries, note=told))
    about = f"the best of {config.name}, on seeds that took no part in choosing them"
    text = to_yaml({row.name: row.settings for row in rows})
    return Study("finals", f"search {config.name}", text, about, AS_GIVEN, tuple(rows))


def _winners_tree(config: TuneConfig, found: SearchResult, winner: RowResult) -> dict[str, object]:
    number = None if winner.name == AS_GIVEN else int(winner.name.split()[-1])
    settings = next((dict(trial.settings) for trial in found.ranking if trial.number == number), {})
    return with_settings(config.base(), settings) | {
        "name": f"{found.directory.name}-winner",
        "seed": config.seed + config.promote.repeats + 1,
        "max_samples": config.promote.full_samples,
    }


def show(promotion: Promotion) -> None:
    """Print the finals and what follows from them."""
    promotion.finals.sheet.show()
    for sentence in conclusion(promotion.finals.found, promotion.winner):
        console.say(sentence)
    console.say(f"train it in full: efafnet train {promotion.preset}")


def conclusion(found: Comparison, winner: RowResult) -> list[str]:
    """What the finals say, and what they do not."""
    given = next((row for row in found.rows if row.name == AS_GIVEN), None)
    told = [
        f"winner: {winner.name}, {winner.mean:.1f} over {winner.runs} new seeds. As the largest of {len(found.rows)} "
        "means it is still a little too good; its full run has a seed of its own"
    ]
    short = [f"{row.name} ({row.runs})" for row in found.rows if row.runs < winner.runs]
    if short:
        told.append(f"cannot win, for too few of their runs ended: {', '.join(short)}")
    difference = winner.difference
    if winner.name == AS_GIVEN:
        told.append("the search found nothing that did better than the settings as given")
    elif given is None:
        told.append("no run of the settings as given ended: whether the winner is better than they are is not known")
    elif difference is None or difference.p_holm is None:
        told.append("too few seeds in common with the settings as given to tell whether it is better than they are")
    elif not difference.distinguishable:
        told.append(f"it is NOT told apart from the settings as given ({difference.value:+.1f}): this may be luck")
    return told
