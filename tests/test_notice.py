"""The end of a machine, announced by a stand-in for AWS's metadata service on loopback, and told to Ray."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psutil
import pytest

from efafnet.platform import notice
from efafnet.platform.notice import Metadata
from tests.metadata_service import Service, action, metadata_service
from tests.waiting import LIMIT_S


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, str]]:
    monkeypatch.setattr(notice, "_TIMEOUT_S", LIMIT_S)
    with metadata_service() as found:
        yield found


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """The nodes that Ray was told of: one here, at 10.0.0.1:6379."""
    told: list[tuple[str, str, int]] = []

    def drain_node(address: str, node_id: str, seconds: int) -> bool:
        told.append((address, node_id, seconds))
        return True

    monkeypatch.setattr(notice, "_drain_node", drain_node)
    monkeypatch.setattr(notice, "local_nodes", lambda: [("10.0.0.1:6379", "ab12")])
    return told


def test_nothing_is_announced_until_it_is(service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # never by way of a proxy
    state, address = service
    metadata = Metadata(address)
    assert metadata.end_of_machine() is None
    assert metadata.end_of_machine() is None
    assert state.asked.count("PUT /latest/api/token") == 1, "a token serves many questions"
    state.tokens.append("a later one: ours has run out")
    state.action = '{"action": "terminate", "time": "2017-09-18T08:22:00Z"}'
    assert metadata.end_of_machine() == datetime(2017, 9, 18, 8, 22, tzinfo=UTC)
    assert state.asked.count("PUT /latest/api/token") == 2
    assert {word for word in state.asked if word.startswith("GET")} == {"GET /latest/meta-data/spot/instance-action"}


def test_the_watch_outlives_hiccups_and_drains_in_time(
    service: tuple[Service, str],
    drained: list[tuple[str, str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state, address = service
    state.broken = 3
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 5:
            state.action = "{}"
        if len(waited) == 6:
            state.action = action(120, now)

    now = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(notice, "datetime", SimpleNamespace(now=lambda _zone: now, strptime=datetime.strptime))
    monkeypatch.setattr("time.sleep", sleep)
    notice.watch(Metadata(address))
    assert waited == [notice.POLL_S] * 6
    [(ray, node, seconds)] = drained
    assert (ray, node) == ("10.0.0.1:6379", "ab12")
    assert seconds == 110, "two minutes, less what Ray needs itself"
    said = capsys.readouterr().err
    assert said.count("HTTP Error 500") == 1, "said once, however often it is asked"
    assert "does not say whether this machine ends: 'time'" in said


@pytest.mark.parametrize(("clock_wrong_by_s", "told_s"), [(0, 110), (3600, 105), (-3600, 105)])
def test_the_watch_outlives_answers_that_are_none_and_clocks_that_are_wrong(
    service: tuple[Service, str],
    drained: list[tuple[str, str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock_wrong_by_s: int,
    told_s: int,
) -> None:
    """105 s: two minutes, less the five between two questions and the ten that are Ray's."""
    state, address = service
    now = datetime(2026, 1, 1, tzinfo=UTC)
    state.garbled, state.action = 1, action(120, now)
    clock = SimpleNamespace(now=lambda _zone: now + timedelta(seconds=clock_wrong_by_s), strptime=datetime.strptime)
    monkeypatch.setattr(notice, "datetime", clock)
    monkeypatch.setattr("time.sleep", lambda _s: None)
    notice.watch(Metadata(address))
    assert [seconds for _, _, seconds in drained] == [told_s]
    assert "does not say whether this machine ends: garbled" in capsys.readouterr().err


def test_a_refused_drain_is_tried_again(
    service: tuple[Service, str], drained: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = service
    state.action = action(60)
    answers = iter([False, False, True])
    monkeypatch.setattr(notice, "drain", lambda _seconds: next(answers))
    monkeypatch.setattr("time.sleep", lambda _s: None)
    notice.watch(Metadata(address))
    assert next(answers, None) is None
    assert drained == []


def test_a_pod_leaves_when_its_work_has_gone(
    drained: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True, True, True, False])
    slept: list[float] = []
    monkeypatch.setattr(notice, "is_busy", lambda: next(looks))
    monkeypatch.setattr("time.sleep", slept.append)
    assert notice.main(["drain", "100"]) == 0
    assert drained == [("10.0.0.1:6379", "ab12", 100)]
    assert slept == [1.0, 1.0]
    monkeypatch.setattr(notice, "is_busy", lambda: False)
    assert notice.main(["drain", "100"]) == 0
    assert len(drained) == 1, "an idle pod goes at once"


def test_nodes_and_work_are_known_by_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, name: str, *cmdline: str) -> None:
            self.info = {"name": name, "cmdline": list(cmdline)}

    raylet = Process("raylet", "/x/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379", "agent --node_id=no")
    here = [Process("python", "python", "--node_id=zz"), raylet, Process("ray::IDLE", "ray::IDLE", "", "")]
    monkeypatch.setattr(psutil, "process_iter", lambda _attributes: iter(here))
    assert notice.local_nodes() == [("10.0.0.1:6379", "ab12")]
    assert not notice.is_busy()
    here.append(Process("ray::RayTrainW", "ray::RayTrainWorker.poll"))
    assert notice.is_busy()


def test_what_is_no_command() -> None:
    for words in ([], ["drain"], ["drain", "soon"], ["watch", "a", "b"]):
        assert notice.main(words) == 2
