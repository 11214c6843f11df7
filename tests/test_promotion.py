"""From a search to a winner: how finalists are chosen and judged, and the whole way once."""

from __future__ import annotations

from pathlib import Path

import pytest

from efafnet.pipelines.promotion import (
    AS_GIVEN,
    conclusion,
    finals_config,
    finals_study,
    middle_samples,
    run_promoted,
    winner_of,
)
from efafnet.pipelines.search.config import TuneConfig
from efafnet.pipelines.search.outcome import RankedTrial
from efafnet.pipelines.study.statistics import Measured, compare
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.platform.configuration import ConfigurationError, apply_overrides, load_preset, resolve
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import read_json
from tests.training_cases import SIMPLE, write_store

SPACE = "about: for tests\nsearch:\n  optimizer.lr: {choice: [1e-5, 5e-3, 1e-2]}\n"


def config_of(place: Path, *overrides: str) -> TuneConfig:
    """A search of seconds on the spots of ``training_cases``: 40 persons, batches of 8."""
    for name, persons in (("train", 40), ("val", 11)):
        if not (place / name).exists():
            write_store(place / name, persons, seed=len(name))
    (place / "my.yaml").write_text(SPACE)
    own = [f"data.train={place}/train", f"data.val={place}/val", f"runs={place}/runs", f"space={place}/my.yaml",
           "name=mine", f"tracking.uri=sqlite:///{place}/mlflow.db", *SIMPLE]  # fmt: skip
    return resolve(TuneConfig, apply_overrides(load_preset("nano_test"), [*own, *overrides]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("promote.full=true", "longer and full need finalists"),
        ("promote.longer=3", "longer and full need finalists"),
        ("promote={finalists: 2, longer: 2}", "longer = 2 runs cannot choose finalists=2"),
        ("promote={finalists: 2, repeats: 1}", "promote.repeats"),
    ],
)
def test_impossible_promotions_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config_of(tmp_path, override)


def test_the_middle_length_lies_between_a_trial_and_a_full_run(tmp_path: Path) -> None:
    """A trial of 80 samples, a full run of 4 epochs of 40 persons in 20 steps of 8: 160."""
    config = config_of(tmp_path, "max_samples=80", "promote.finalists=1")
    inputs = open_inputs(config)
    assert middle_samples(config, inputs) == 113  # sqrt(80 * 160)
    given = config_of(tmp_path, "max_samples=80", "promote.finalists=1", "promote.samples=99")
    assert middle_samples(given, inputs) == 99
    short = config_of(tmp_path, "max_samples=80", "promote.finalists=1", "promote.full_samples=40")
    with pytest.raises(ValueError, match="cannot be shorter than a trial's 80"):
        middle_samples(short, inputs)


def test_promotion_is_not_part_of_what_a_search_is(tmp_path: Path) -> None:
    plain, promoted = config_of(tmp_path), config_of(tmp_path, "promote={finalists: 2, longer: 3, full: true}")
    inputs = open_inputs(plain)
    assert inputs.identity(plain) == inputs.identity(promoted)


def test_finalists_meet_the_settings_as_given_on_seeds_the_search_has_not_seen(tmp_path: Path) -> None:
    config = config_of(tmp_path, "seed=4", "promote={finalists: 1, repeats: 2}", "search.concurrency=3")
    rows = finals_study(config, [RankedTrial(7, 0.5, {"optimizer.lr": 0.01})])
    assert [(row.name, row.settings) for row in rows.rows] == [(AS_GIVEN, {}), ("trial 0007", {"optimizer.lr": 0.01})]
    assert (rows.baseline, rows.rows[1].note) == (AS_GIVEN, "lr=0.01")
    finals = finals_config(config, 120)
    assert (finals.seed, finals.seeds, finals.max_samples, finals.concurrency) == (5, 2, 120, 3)
    assert finals.run_dir == tmp_path / "runs/mine/finals"


def test_one_lucky_run_wins_nothing() -> None:
    lucky = Measured("trial 0002", {1: 58.0})
    found = compare([Measured(AS_GIVEN, {1: 50.0, 2: 51.0, 3: 52.0}), lucky], AS_GIVEN)
    winner = winner_of(found.rows, 3)
    assert winner.name == AS_GIVEN
    told = "\n".join(conclusion(found, winner))
    assert "cannot win, for too few of their runs ended: trial 0002 (1)" in told
    assert "the search found nothing that did better than the settings as given" in told


def test_what_is_said_of_a_winner_without_a_baseline_is_true() -> None:
    found = compare([Measured("trial 0002", {1: 58.0, 2: 57.0})], AS_GIVEN)
    told = "\n".join(conclusion(found, winner_of(found.rows, 3)))
    assert "winner: trial 0002, 57.5 over 2 new seeds" in told
    assert "no run of the settings as given ended" in told
    assert "found nothing" not in told


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_is_promoted_to_a_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(
        tmp_path, "max_samples=80", "search.sampler=grid", "search.stop=none", "tracking.enabled=true",
        "tracking.system_metrics_every_s=null", "tracking.register_as=spots", "optimizer.lr=1e-5",
        "search.concurrency=1", "worker.cpus=1",  # one process takes all runs of a stage, and imports torch once
        "promote={finalists: 1, longer: 2, repeats: 2, samples: 120, full: true}", "validation.overlays=0",
    )  # fmt: skip
    assert run_promoted(config) == 0
    told = capsys.readouterr()
    assert "rank correlation of the trials' figures with those of their longer runs (2): too few to tell" in told.out
    assert "winner: trial 000" in told.out  # the settings as given hardly learn
    place = tmp_path / "runs/mine"
    assert len(list((place / "longer").iterdir())) == 2
    finals = read_json(place / "finals/result.json")
    assert finals["rows"][0]["name"] == AS_GIVEN
    assert (finals["seeds"], [row["runs"] for row in finals["rows"]]) == ([1, 2], [2, 2])
    winner = resolve(TrainConfig, load_preset(str(place / "winner.yaml")))
    assert (winner.seed, winner.max_samples, winner.name) == (3, None, "mine-winner")
    full = read_json(tmp_path / "runs/mine-winner/result.json")
    assert full["metrics"]["last/samples"] == 160
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    stages = [run.data.tags["efafnet.stage"] for run in runs]
    assert {stage: stages.count(stage) for stage in set(stages)} == {
        "search": 1, "trial": 3, "longer": 2, "study": 1, "repeat": 4, "train": 1,
    }  # fmt: skip
    assert {run.info.status for run in runs} == {"FINISHED"}
    (version,) = client.search_model_versions("name='spots'")
    assert version.run_id == full["mlflow_run_id"]

    assert run_promoted(config) == 0  # the same command again: nothing is run, the same is told
    assert "winner: trial 000" in capsys.readouterr().out
    assert len(client.search_runs([each.experiment_id for each in client.search_experiments()])) == len(runs)
