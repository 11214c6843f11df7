"""Whose fault an error is: what ends a run for good, what is tried again, how often, and from where."""

from __future__ import annotations

import errno
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from efafnet.pipelines.crops.decode import UndecodableCropError
from efafnet.pipelines.training import job as job_module
from efafnet.pipelines.training import loop, ray_run, ray_worker, reservations
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import GroupContext, PlainContext
from efafnet.pipelines.training.errors import DivergedError
from efafnet.pipelines.training.faults import FINAL, Failures, cause_of
from efafnet.pipelines.training.ray_run import train
from efafnet.pipelines.training.rundir import RunRecord
from efafnet.platform.cluster import ClusterError, defaults
from tests.training_cases import sbn_config_of, trace_of, write_store
from tests.waiting import LIMIT_S

EIO = OSError(errno.EIO, "Input/output error")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for before further tries, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(ray_run, "_wait", lambda seconds, *_: waited.append(seconds))
    return waited


def test_the_list_of_what_ends_a_run_is_closed() -> None:
    """The bases say nothing: a disk's, a library's and a lost group's errors are ValueErrors, too."""
    assert {error.__name__ for error in FINAL} == {
        "DivergedError", "ConfigurationError", "RunConflictError", "LostRunError", "UndecodableCropError",
    }  # fmt: skip
    assert ValueError not in FINAL
    assert not any(issubclass(error, OSError) for error in FINAL)


# ---- counting


def place(directory: Path, step: int) -> None:
    (directory / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def test_failures_count_from_the_last_progress_and_pauses_grow(tmp_path: Path) -> None:
    waited: list[float] = []
    failures = Failures(tmp_path, 3, waited.append)
    for _ in range(3):
        failures.wait_or_raise(EIO)
    place(tmp_path, 10)
    for _ in range(3):
        failures.wait_or_raise(EIO)
    assert waited == [1.0, 4.0, 15.0, 1.0, 4.0, 15.0]
    with pytest.raises(ClusterError, match=r"4 failures of this kind without progress beyond step-00000010 .*Errno 5"):
        failures.wait_or_raise(EIO)


def test_other_failures_at_the_same_place_are_counted_by_themselves(tmp_path: Path) -> None:
    failures = Failures(tmp_path, 2, lambda _: None)
    for _ in range(2):
        failures.wait_or_raise(EIO)
        failures.wait_or_raise(RuntimeError("Connection closed by peer"))
    with pytest.raises(ClusterError, match="Connection closed by peer"):
        failures.wait_or_raise(RuntimeError("Connection closed by peer"))


def test_of_a_long_message_the_beginning_and_the_end_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Failures(tmp_path, 2, lambda _: None).wait_or_raise(RuntimeError(f"the actor died {'why ' * 200}out of memory"))
    told = " ".join(capsys.readouterr().err.split())
    assert "RuntimeError: the actor died why" in told
    assert "out of memory; going on from" in told
    assert len(told) < 450


def test_without_a_limit_a_run_goes_on_for_ever_but_waits(tmp_path: Path) -> None:
    waited: list[float] = []
    failures = Failures(tmp_path, -1, waited.append)
    for _ in range(50):
        failures.wait_or_raise(EIO)
    assert waited == [1.0, 4.0, 15.0, *[60.0] * 47]


def test_a_file_system_that_does_not_answer_is_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = Failures(tmp_path, 1, lambda _: None)
    place(tmp_path, 10)
    failures.wait_or_raise(EIO)

    def fails(_: Path) -> Any:
        raise EIO

    monkeypatch.setattr(Path, "iterdir", fails)
    with pytest.raises(ClusterError, match="beyond step-00000010"):
        failures.wait_or_raise(EIO)


def test_memory_that_runs_out_again_and_again_comes_with_the_remedy(tmp_path: Path) -> None:
    """Not at once: where GPUs differ, or a node is missing, the next life may have more of it."""
    failures = Failures(tmp_path, 1, lambda _: None)
    failures.wait_or_raise(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ClusterError, match=r"CUDA out of memory; lower compute.micro_batch or test.batch_size"):
        failures.wait_or_raise(torch.OutOfMemoryError("CUDA out of memory"))


# ---- the cause inside what Ray wraps around it


def test_the_workers_error_that_says_most_is_the_cause() -> None:
    closed = RuntimeError("Connection closed by peer")
    crop = UndecodableCropError("row 7 cannot be decoded")
    assert cause_of(WorkerGroupError("all", {0: closed, 1: EIO, 2: crop})) is crop
    assert cause_of(WorkerGroupError("two", {0: closed, 1: EIO})) is EIO
    died = ValueError("the actor died")
    assert cause_of(WorkerGroupError("dead", {0: WorkerHealthCheckFailedError("not healthy", died)})) is died
    assert cause_of(ControllerError(closed)) is closed
    assert cause_of(WorkerGroupError("none", {})).__class__ is WorkerGroupError


# ---- on Ray's workers


def fit(tmp_path: Path, *planned: Any, limit: int = 2) -> Any:
    ends = list(planned)

    class Trainer:
        def fit(self) -> Any:
            end = ends.pop(0)
            if isinstance(end, Exception):
                raise end
            return SimpleNamespace(return_value=end)

    answer = ray_run._fit(sbn_config_of(tmp_path, f"worker.max_failures={limit}"), cast(Any, Trainer))
    assert not ends
    return answer


def test_what_ray_ends_with_is_tried_again(
    tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ControllerError(RuntimeError("process group: connection refused"))
    dead = WorkerGroupError("read", {0: RuntimeError("closed"), 1: EIO})
    killed = ActorDiedError()
    assert fit(tmp_path, lost, lost, dead, killed, {"checkpoint": "c"}) == {"checkpoint": "c"}
    assert pauses == [1.0, 4.0, 1.0, 1.0]
    told = capsys.readouterr().err
    assert "process group: connection refused; going on from the start in 1 s (failure 1 of 2 there)" in told
    with pytest.raises(ClusterError, match=r"worker.max_failures = 1\): RuntimeError: process .*same command"):
        fit(tmp_path, lost, lost, limit=1)


def test_what_dead_controllers_had_reserved_is_given_back(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the pause in which the next life begins to look for a place, and by a program that comes after one that
    died. What Ctrl-C leaves goes with the program."""
    given: list[str] = []
    monkeypatch.setattr(reservations, "remove_reservation", given.append)
    note = sbn_config_of(tmp_path).run_dir / reservations.PLACEMENT
    note.parent.mkdir(parents=True)
    note.write_text("of a program that died")

    class Trainer:
        lives = 0

        def fit(self) -> Any:
            Trainer.lives += 1
            assert len(given) == Trainer.lives
            note.write_text(f"of life {Trainer.lives}")
            if Trainer.lives == 2:
                raise KeyboardInterrupt
            raise ActorDiedError

    with pytest.raises(KeyboardInterrupt):
        ray_run._fit(sbn_config_of(tmp_path), cast(Any, Trainer))
    assert given == ["of a program that died", "of life 1"]
    assert note.read_text() == "of life 2"
    assert pauses == [1.0]


@pytest.mark.parametrize(
    "final", [DivergedError("the loss is not finite", 3, [1]), UndecodableCropError("row 7"), FINAL[1]("no metric")]
)
def test_a_runs_own_error_ends_it_at_once_and_as_it_is(tmp_path: Path, pauses: list[float], final: ValueError) -> None:
    with pytest.raises(type(final)) as raised:
        fit(tmp_path, WorkerGroupError("failed", {0: RuntimeError("closed"), 1: final}))
    assert raised.value is final
    assert pauses == []


def test_a_step_that_lost_its_group_says_nothing_about_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes the group down under living workers when another dies: torch's ValueError is the machine's."""
    config = sbn_config_of(tmp_path)
    config.run_dir.mkdir(parents=True)
    record = asdict(RunRecord("a", "", {}, ""))
    job = asdict(
        ray_worker.WorkerJob(config.model_dump_json(), record, watched=False, each={"CPU": 1}, async_validation=False)
    )

    def run(_: TrainConfig, context: PlainContext) -> None:
        torch.distributed.destroy_process_group()
        context.agree(1)

    monkeypatch.setattr(ray_worker, "RayContext", lambda **_: GroupContext())
    monkeypatch.setattr(loop, "run", run)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    with pytest.raises(ValueError, match="process group has not been initialized") as raised:
        ray_worker.train_on_worker(job)
    Failures(tmp_path, 1, lambda _: None).wait_or_raise(WorkerGroupError("failed", {0: raised.value}))


@pytest.mark.parametrize(("checkpoint", "told"), [(True, "step 40 saved; the same"), (False, "has no checkpoint yet")])
def test_ctrl_c_reaches_a_run_on_rays_workers_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: bool, told: str
) -> None:
    """A real signal while Ray is waited for; Ray's own handler would ask its controller and exit without a word."""
    config, endings = sbn_config_of(tmp_path), []
    if checkpoint:
        place(config.run_dir, 40)
    forever, answered = threading.Event(), []

    class Trainer:
        def fit(self) -> Any:
            assert threading.current_thread() is not threading.main_thread(), "there Ray takes Ctrl-C over"
            os.kill(os.getpid(), signal.SIGINT)
            answered.append(forever.wait(LIMIT_S))

    monkeypatch.setattr(ray_run, "fail_record", lambda _, interrupted, **_taken: endings.append(interrupted))
    with pytest.raises(KeyboardInterrupt), ray_run._failure_reported(config, RunRecord("a", "", {}, "")):
        ray_run._fit(config, cast(Any, Trainer))
    assert not answered, "nobody waited for what Ray had to say"
    forever.set()
    assert f"interrupted; {'' if checkpoint else 'run nano_test '}{told}" in " ".join(capsys.readouterr().err.split())
    assert endings == [True]


def test_a_run_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFAFNET_TEST_GIVEN", "mine")
    monkeypatch.delenv("EFAFNET_TEST_UNSET", raising=False)
    with defaults({"EFAFNET_TEST_GIVEN": "default", "EFAFNET_TEST_UNSET": "5"}):
        assert os.environ["EFAFNET_TEST_GIVEN"] == "mine"
        assert os.environ["EFAFNET_TEST_UNSET"] == "5"
    assert "EFAFNET_TEST_UNSET" not in os.environ
    assert os.environ["EFAFNET_TEST_GIVEN"] == "mine"


# ---- in one process


def fail_reads(monkeypatch: pytest.MonkeyPatch, pauses: list[float], times: int) -> None:
    """Let every read of the third row group fail until the run has paused ``times`` times."""
    honest = pq.ParquetFile.read_row_group

    def read(self: Any, group: int, **options: Any) -> Any:
        if group == 2 and len(pauses) < times:
            raise OSError(errno.EIO, "Input/output error")
        return honest(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)


SETTINGS = ("trace=true", "epochs=3", "data.val=null", "checkpoint={every_epochs: null, every_steps: 4}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[list[int], list[str]]]:
    """The steps of a run to which nothing happens."""
    config = sbn_config_of(tmp_path_factory.mktemp("undisturbed"), *SETTINGS)
    train(config)
    return trace_of(config)


def test_a_read_that_fails_now_and_then_costs_no_run(
    undisturbed: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    hit = sbn_config_of(tmp_path, *SETTINGS)
    with monkeypatch.context() as patched:
        fail_reads(patched, pauses, 2)
        train(hit)
    assert pauses == [1.0, 4.0]
    assert "persons-00000.parquet cannot be read ([Errno 5] Input/output error)" in capsys.readouterr().err
    assert trace_of(hit) == undisturbed


def test_a_disk_that_stays_away_ends_a_run_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    config = sbn_config_of(tmp_path, "worker.max_failures=2", *SETTINGS)
    with monkeypatch.context() as patched:
        fail_reads(patched, pauses, 99)
        with pytest.raises(ClusterError, match=r"3 failures of this kind .*persons-00000.parquet cannot be read"):
            train(config)
    assert pauses == [1.0, 4.0]
    assert train(config).metrics["step"] == 15


def test_errors_of_a_store_that_does_not_answer_are_errors_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "train")
    config = sbn_config_of(tmp_path)
    honest = Path.read_bytes

    def read(self: Path) -> bytes:
        if self.name == "manifest.json":
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return honest(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(OSError, match=r"data.train = .*Stale file handle"):
        train(config)


def test_a_crop_that_is_no_picture_ends_a_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    from efafnet.pipelines.crops.decode import CropDecoder

    def decode(*_: Any) -> Any:
        raise UndecodableCropError("a crop of 64x64 pixels cannot be decoded")

    monkeypatch.setattr(CropDecoder, "decode", decode)
    with pytest.raises(UndecodableCropError, match=r"crop store .*train, row \d+: a crop of 64x64"):
        train(sbn_config_of(tmp_path, *SETTINGS))
    assert pauses == []


def test_a_figure_that_validation_does_not_give_ends_a_run_at_once(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(ValueError, match=r"validation.metric = 'mAP': validation gives"):
        train(sbn_config_of(tmp_path, "epochs=2", "validation={every_epochs: 1, metric: mAP, overlays: 0}"))
    assert pauses == []


def test_a_resume_whose_checkpoint_cannot_be_read_for_a_moment_waits(
    undisturbed: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    cut = sbn_config_of(tmp_path, *SETTINGS)
    honest_count = job_module.Job.count

    def counted(self: job_module.Job, *arguments: Any) -> None:
        honest_count(self, *arguments)
        if self.progress.step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job_module.Job, "count", counted)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    honest, reads = Path.read_bytes, [0]

    def read(self: Path) -> bytes:
        reads[0] += self.name == "state.pt"
        if self.name == "state.pt" and reads[0] <= 2:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return honest(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    train(cut)
    assert pauses == [1.0, 4.0]
    assert "resuming at step 8 of 15" in (cut.run_dir / "train.log").read_text()
    assert trace_of(cut) == undisturbed
