"""A trial's own process: what it hears of its run, and how it ends."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import torch
from ray.tune.result import DONE

from efafnet.pipelines.runs.attempt import LOG, RELEASE_S
from efafnet.pipelines.search.trial import FAILURE, METRIC, SAMPLES, Figure, TrialActor, TrialRun, Watch
from efafnet.pipelines.training import execution
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.reservations import PlacementNote, release
from efafnet.pipelines.training.rundir import RunDirectory
from efafnet.platform import locks
from tests.training_cases import config_of, sbn_config_of
from tests.waiting import wait_for


def checkpoint(run: Path, step: int, validations: dict[int, float], *, whole: bool = True) -> None:
    """What a checkpoint of a run looks like to a watcher: ``validations`` by step, its own and those before it."""
    place = run / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    meta = {
        "format": "efafnet-checkpoint",
        "format_version": 1,
        "files": {"config.json": "", "state.pt": ""},
        "step": step,
        "samples": step * 8.0,
        "validations": {str(validated): value for validated, value in validations.items()},
    }
    text = json.dumps(meta)
    (place / "meta.json").write_text(text if whole else text[:20])


def test_checkpoints_are_recognised_by_the_real_format(tmp_path: Path) -> None:
    """The fake above must look like what training writes."""
    from efafnet.pipelines.training.context import PlainContext
    from efafnet.pipelines.training.loop import run

    config = sbn_config_of(tmp_path, "epochs=2", "validation.every_epochs=1")
    run(config, PlainContext())
    figures = Watch(config.run_dir).new()
    assert [figure.samples for figure in figures] == [40, 80]
    checkpoint(tmp_path / "fake", 5, {5: 0.5})
    assert Watch(tmp_path / "fake").new() == [Figure(40, 0.5)]


def test_each_validation_is_heard_once_in_order(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    assert watch.new() == []
    checkpoint(tmp_path, 10, {5: 0.1, 10: 0.2})
    checkpoint(tmp_path, 5, {5: 0.1})
    checkpoint(tmp_path, 7, {5: 0.1})
    assert watch.new() == [Figure(40, 0.1), Figure(80, 0.2)]
    assert watch.new() == []


def test_a_validation_is_heard_though_its_checkpoint_was_pruned(tmp_path: Path) -> None:
    checkpoint(tmp_path, 15, {5: 0.1, 10: 0.2})
    watch = Watch(tmp_path)
    assert watch.new() == [Figure(40, 0.1), Figure(80, 0.2)]
    checkpoint(tmp_path, 25, {5: 0.1, 10: 0.2, 20: 0.3})
    assert watch.new() == [Figure(160, 0.3)]


def test_a_checkpoint_that_is_not_whole_is_looked_at_again(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    checkpoint(tmp_path, 5, {5: 0.1}, whole=False)
    assert watch.new() == []
    (tmp_path / "checkpoints" / "step-00000005").rename(tmp_path / "gone")
    checkpoint(tmp_path, 5, {5: 0.1})
    assert watch.new() == [Figure(40, 0.1)]


def job(config: TrainConfig) -> dict[str, Any]:
    return {"number": 0, "train": config.model_dump_json(), "parent_run_id": None, "tags": {}, "environment": {}}


def results(run: TrialRun) -> list[dict[str, Any]]:
    """All that a trial tells."""
    told = [run.next()]
    while DONE not in told[-1]:
        told.append(run.next())
    return told


def test_a_trial_trains_reports_every_validation_and_keeps_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sbn_config_of(tmp_path, "validation.every_epochs=1", "checkpoint.keep_last=1")
    told = results(TrialRun(job(config)))
    assert [each[SAMPLES] for each in told] == [40, 80, 120, 160, 160]
    assert all(0 <= each[METRIC] <= 1 for each in told)
    assert (told[-1][DONE], told[-1][METRIC]) == (True, told[-2][METRIC])
    assert "validation at step 20" in (config.run_dir / "run.log").read_text()
    assert capsys.readouterr().err == ""
    assert results(TrialRun(job(config))) == told  # after a kill whose last figures were not heard


def test_a_trial_that_fails_reports_why_and_raises_nothing(tmp_path: Path) -> None:
    (told,) = results(TrialRun(job(sbn_config_of(tmp_path, "optimizer.lr=1e30"))))
    assert told[FAILURE].startswith("DivergedError: training diverged: the loss is not finite at step 2")


def test_memory_that_runs_out_is_the_trials_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(execution, "train_step", greedy)
    (told,) = results(TrialRun(job(sbn_config_of(tmp_path))))
    assert told[FAILURE].startswith("ConfigurationError: the CPU cannot hold a training step of a single crop")
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB)" in told[FAILURE]


def test_a_process_takes_one_trial_after_another(tmp_path: Path) -> None:
    """What the search stops in between ends after its step, leaves its directory, and nothing writes there again."""
    # It keeps every checkpoint: how far it comes before it is stopped is the machine's matter.
    long = config_of(tmp_path, "epochs=400", "validation.every_epochs=1", "checkpoint.keep_last=400", "name=long")
    actor = TrialActor(job(long))
    assert actor.step()[SAMPLES] == 40
    assert actor.reset_config(job(sbn_config_of(tmp_path, "epochs=1", "name=short")))
    with RunDirectory(long.run_dir).locked():
        pass
    assert "validation at step 2000" not in (long.run_dir / "run.log").read_text()
    assert [actor.step()[SAMPLES], actor.step()[DONE]] == [40, True]
    actor.cleanup()
    # The stopped one can be gone on with: a search that was killed just then may do so.
    again = TrialRun(job(long))
    assert again.next()[SAMPLES] == 40
    again.cancel()


def test_a_trial_waits_for_the_process_of_an_earlier_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sbn_config_of(tmp_path, "epochs=1")
    config.run_dir.mkdir(parents=True)
    held: list[TextIO] = []
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        assert not (config.run_dir / LOG).exists(), "nothing is begun as long as the run is held"
        waited.append(seconds)
        if len(waited) == 3:
            held.pop().close()

    # The waiting's own clock, which goes on as it sleeps.
    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=sleep))
    held.append((config.run_dir / ".lock").open("a"))
    fcntl.flock(held[0], fcntl.LOCK_EX)
    told = results(TrialRun(job(config)))
    assert len(waited) == 3
    assert FAILURE not in told[-1]
    config = sbn_config_of(tmp_path, "epochs=1", "name=b")
    config.run_dir.mkdir()
    waited[:] = [0.0] * 3
    with (config.run_dir / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (told_b,) = results(TrialRun(job(config)))
    assert "being trained by another process" in told_b[FAILURE]
    assert RELEASE_S <= sum(waited) < RELEASE_S + 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_reservation_that_a_dead_run_left_is_given_back(tmp_path: Path) -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())

    class State:
        class placement_group_handle:  # noqa: N801 (Ray's name)
            placement_group = group

    class Workers:
        def get_worker_group_state(self) -> type[State]:
            return State

    file = tmp_path / "placement"
    assert release(file) is False
    PlacementNote(file).after_worker_group_start(Workers())
    assert release(file) is True
    wait_for("end of the reservation", lambda: placement_group_table(group)["state"] == "REMOVED")
    assert not file.exists()
    file.write_text(group.id.hex())
    assert release(file) is True  # gone already: nothing happens
