"""What workers take of a cluster: decided from what lives and from what may come."""

from __future__ import annotations

from typing import Any

import pytest

from efafnet.pipelines.runs import concurrency
from efafnet.pipelines.runs.concurrency import Concurrency
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.placement import needs, placed, slots
from efafnet.platform.capacity import Capacity, Shape
from efafnet.platform.configuration import apply_overrides, resolve

HEAD: Shape = {"CPU": 2}
G5: Shape = {"CPU": 4, "GPU": 1}
FROM_ZERO = Capacity([HEAD], lambda: (HEAD, *[G5] * 4))
"""cluster.yaml's: a head without GPU, up to four machines that come with the work."""


def config_of(*overrides: str) -> TrainConfig:
    return resolve(TrainConfig, apply_overrides({"batch_size": 64}, list(overrides)))


def nodes(*each: tuple[float, float]) -> Capacity:
    return Capacity([{"CPU": cpus, "GPU": gpus} for cpus, gpus in each])


@pytest.mark.parametrize(
    ("overrides", "there", "runs", "expected"),
    [
        # The README's own commands on its own cluster, before any GPU machine lives.
        (("workers=4",), FROM_ZERO, 1, {"CPU": 3, "GPU": 1}),
        (("workers=1..4",), FROM_ZERO, 1, {"CPU": 3, "GPU": 1}),
        (("workers=1",), FROM_ZERO, 40, {"CPU": 3, "GPU": 1}),
        (("workers=4",), Capacity([HEAD, G5, G5, G5], lambda: (HEAD, *[G5] * 4)), 1, {"CPU": 3, "GPU": 1}),
        (("workers=4", "worker.gpu=no"), FROM_ZERO, 1, {"CPU": 4}),
        (("workers=4", "device=cpu"), FROM_ZERO, 1, {"CPU": 4}),
        (("workers=4", "worker.cpus=2"), FROM_ZERO, 1, {"CPU": 2, "GPU": 1}),
        # Where nobody knows what may come, who says yes waits for it.
        (("workers=4", "worker.gpu=yes"), Capacity([HEAD], lambda: None), 1, {"CPU": 1, "GPU": 1}),
        # A machine of eight GPUs and 192 cores: no more than a reader can use.
        (("workers=8",), nodes((192, 8)), 1, {"CPU": 16, "GPU": 1}),
        (("workers=1", "worker.gpus=0.5"), nodes((16, 1)), 2, {"CPU": 7, "GPU": 0.5}),
        # Elastic: enough for the fewest is enough, for a training and for a search alike.
        (("workers=1..4",), nodes((8, 1), (8, 1)), 1, {"CPU": 7, "GPU": 1}),
        (("workers=1..4",), nodes((8, 1), (8, 1)), 9, {"CPU": 7, "GPU": 1}),
        # CPUs: equal parts, whole machines' worth of them.
        (("workers=1",), nodes((8, 0)), 1, {"CPU": 8}),
        (("workers=2",), nodes((2, 0)), 1, {"CPU": 1}),
        (("workers=3",), nodes((4, 0), (4, 0)), 1, {"CPU": 2}),
        (("workers=1",), nodes((8, 0)), 3, {"CPU": 2}),
        (("workers=1",), nodes((8, 0)), 100, {"CPU": 1}),
        (("workers=1",), nodes((64, 0)), 1, {"CPU": 16}),
    ],
)
def test_workers_take_what_the_cluster_has_or_may_start(
    overrides: tuple[str, ...], there: Capacity, runs: int, expected: dict[str, float]
) -> None:
    assert needs(placed(config_of(*overrides), there, runs=runs)) == expected


@pytest.mark.parametrize(
    ("overrides", "there", "message"),
    [
        (
            ("workers=4",),
            Capacity([HEAD], lambda: None),
            r"worker\.gpu = auto: the cluster has 0 of 4 GPUs now, and what it may grow to is not known; set "
            r"worker\.gpu=yes to wait for them, or worker\.gpu=no",
        ),
        (
            ("workers=8", "worker.gpu=yes"),
            FROM_ZERO,
            r"worker\.gpu = yes: 8 GPUs are needed, this cluster at its largest has 4; lower the number of workers",
        ),
        (("workers=1", "worker.gpu=yes"), nodes((2, 0)), "1 GPU is needed, this cluster has 0"),
        (
            ("workers=8", "worker.gpu=no", "worker.cpus=4"),
            FROM_ZERO,
            r"workers = 8: this cluster at its largest has room for 4 that need 4 CPU each; lower workers or "
            r"worker\.cpus",
        ),
        (
            ("workers=8", "worker.gpu=no"),
            Capacity([HEAD], is_local=True),
            r"workers = 8: this machine has room for 2 that need 1 CPU each; lower workers or worker\.cpus; or join a",
        ),
        (("workers=1", "worker.cpus=5"), nodes((4, 0), (4, 0)), "has room for 0 that need 5 CPU each"),
    ],
)
def test_what_can_never_run_is_refused(overrides: tuple[str, ...], there: Capacity, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placed(config_of(*overrides), there)


def test_gpus_that_stay_unused_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert needs(placed(config_of("workers=4"), nodes((4, 1)))) == {"CPU": 1}
    told = capsys.readouterr().err
    assert "computing on CPUs: 4 GPUs are needed, this cluster has 1; fewer workers would use them" in told


def test_enough_machines_that_live_are_not_asked_what_may_come() -> None:
    def ask() -> tuple[Shape, ...]:
        raise AssertionError("a task on the head costs seconds")

    assert needs(placed(config_of("workers=2", "worker.cpus=2"), Capacity([HEAD, G5, G5], ask)))["GPU"] == 1


@pytest.mark.parametrize(
    ("overrides", "there", "expected"),
    [
        (("workers=1", "worker.cpus=1"), nodes((2, 0)), 2),
        (("workers=2", "worker.cpus=1"), nodes((2, 0)), 1),
        (("workers=2", "worker.cpus=1"), nodes((3, 0), (3, 0)), 3),
        (("workers=1", "worker.cpus=2"), nodes((3, 0), (3, 0)), 2),  # not 6 / 2: no worker spans nodes
        (("workers=1", "worker.cpus=2"), nodes((4, 1), (16, 4), (8, 0)), 5),
        (("workers=2", "worker.gpu=no", "worker.cpus=1"), nodes((4, 1), (16, 4)), 10),
        (("workers=0", "worker.cpus=1"), nodes((2, 0)), 2),
        # Four on the first GPU, three by the CPUs.
        (("workers=1", "worker.gpus=0.25", "worker.cpus=1"), nodes((16, 1), (3, 1)), 7),
        (("workers=0", "worker.gpus=0.5"), nodes((8, 2)), 4),
        (("workers=1",), FROM_ZERO, 4),
        (("workers=2",), FROM_ZERO, 2),
        (("workers=1", "worker.gpu=yes"), Capacity([HEAD, G5], lambda: None), 2),  # one to make it grow
    ],
)
def test_as_many_runs_at_once_as_their_workers_fit(overrides: tuple[str, ...], there: Capacity, expected: int) -> None:
    assert slots(placed(config_of(*overrides), there, runs=99), there) == expected


def test_a_search_follows_the_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now: dict[str, Any] = {"there": nodes((4, 1)), "s": 0.0}
    monkeypatch.setattr(concurrency, "resources", lambda: None)
    monkeypatch.setattr(concurrency, "capacity", lambda _: now["there"])
    monkeypatch.setattr("time.monotonic", lambda: now["s"])
    config = placed(config_of("workers=1", "worker.cpus=1"), now["there"])
    at_once = Concurrency(config, None)
    assert at_once() == 1
    now["there"] = nodes((4, 1), (4, 1), (4, 1))
    assert at_once() == 1, "it is not looked at for every question"
    now["s"] = 11.0
    assert at_once() == 3
    now.update(there=nodes((4, 1)), s=22.0)
    assert at_once() == 1
    told = capsys.readouterr()
    assert "room for 3 runs at a time now, 1 before" in told.out + told.err
    assert Concurrency(config, 7)() == 7, "what is asked for stays"
