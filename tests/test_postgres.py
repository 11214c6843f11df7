"""A study in PostgreSQL that several commands search in: on a server of the test's own, where one is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest

from efafnet.pipelines.search.config import SearchConfig
from efafnet.pipelines.search.ledger import Ledger, Shared
from efafnet.pipelines.search.study_db import StudyUnavailableError, lasting
from efafnet.tune_spaces.reading import parse_space
from tests.processes import free_port
from tests.waiting import LIMIT_S

PASSWORD = "s3cr/t@pw"
SPACE = parse_space("search:\n  optimizer.lr: {float: [1e-4, 1e-2], log: true}\n", "rates.yaml")
OTHER_COMMAND = """\
import sys
from pathlib import Path
from tests.test_postgres import driver
book = driver(Path(sys.argv[1]), "other", sys.argv[2])
while (assignment := book.next()) is not None:
    book.report(assignment.number, 100, assignment.number / 100)
    print(assignment.number, flush=True)
    sys.stdin.readline()
    book.finish(assignment.number, "complete")
"""
"""Searches one trial for every line that it is given; the number of each is printed while it runs."""


@dataclass
class Server:
    """A PostgreSQL of one test."""

    address: str
    """With name and password."""
    control: list[str]
    """``pg_ctl`` with what it needs, but for its verb."""
    user: str | None
    """Whom it runs as: it does not run as root."""

    def ctl(self, *words: str) -> None:
        subprocess.run([*self.control, *words], check=True, capture_output=True, user=self.user, cwd="/")


def _program(name: str) -> str | None:
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(beside[-1]) if beside else None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a password, an empty database and no durability."""
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed here")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install -c constraints.txt -e '.[postgres]'")
    port = free_port()
    place = Path(tempfile.mkdtemp(prefix="efafnet-postgres-"))
    user = "nobody" if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(place, user)
    (place / "password").write_text(PASSWORD)
    (place / "password").chmod(0o644)
    data = place / "data"
    made = [initdb, "-D", str(data), "-U", "me", f"--pwfile={place}/password", "-A", "scram-sha-256", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True, user=user, cwd="/")
    options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off"
    words = [control, "-D", str(data), "-o", options, "-l", str(place / "log"), "-w"]
    here = Server(f"postgresql://me:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres", words, user)
    here.ctl("start")
    try:
        yield here
    finally:
        subprocess.run([*words, "-m", "immediate", "stop"], check=False, capture_output=True, user=user, cwd="/")
        shutil.rmtree(place)


def driver(place: Path, name: str, address: str, study: str = "s", trials: int = 12) -> Ledger:
    """The ledger of one command with a directory of its own."""
    (place / name).mkdir(exist_ok=True)
    storage = SearchConfig(storage=address).storage
    assert storage is not None
    shared = Shared(storage, name, "same")
    return Ledger(
        place / name / "study.db", study, SPACE, trials=trials, sampler="tpe", seed=1, startup=2, shared=shared
    )


def test_two_commands_search_together_and_one_is_killed(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER_COMMAND, str(tmp_path), server.address]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        mine = driver(tmp_path, "mine", server.address)
        its = [int(other.stdout.readline())]
        own = []
        for _ in range(3):  # both have a trial running, again and again
            assignment = mine.next()
            assert assignment is not None
            own.append(assignment.number)
            mine.report(assignment.number, 100, 0.0)
            other.stdin.write("\n")
            other.stdin.flush()
            its.append(int(other.stdout.readline()))
            mine.finish(assignment.number, "complete")
        other.send_signal(signal.SIGKILL)
        other.wait(LIMIT_S)
    assert sorted([*own, *its]) == list(range(7)), "no trial is handed out twice, and none is lost"
    assert mine.curves[its[0]] == {100: its[0] / 100}, "figures of the other command are known here"

    while (assignment := mine.next()) is not None:  # goes on alone; the killed one's last trial stays open
        mine.report(assignment.number, 100, 0.0)
        mine.finish(assignment.number, "complete")
    assert [trial.number for trial in mine.own() if not trial.state.is_finished()] == [its[-1]]

    again = driver(tmp_path, "other", server.address)
    assignment = again.next()
    assert assignment is not None
    assert (assignment.number, assignment.attempt) == (its[-1], 2)
    assert again.curves[its[-1]] == {100: its[-1] / 100}
    again.finish(assignment.number, "complete")
    assert again.next() is None
    assert again.over() == again.trials == 12
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert PASSWORD.encode() not in written
    assert quote(PASSWORD, safe="").encode() not in written


def test_a_wrong_password_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    wrong = server.address.replace(quote(PASSWORD, safe=""), "wr0ng")
    with pytest.raises(StudyUnavailableError, match="check the address, name and password") as refused:
        driver(tmp_path, "a", wrong)
    assert 'password authentication failed for user "me"' in str(refused.value)
    assert "wr0ng" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_search_whose_database_goes_away_says_so_and_goes_on_later(server: Server, tmp_path: Path) -> None:
    book = driver(tmp_path, "a", server.address, study="lasting")
    assert book.next() is not None
    server.ctl("-m", "immediate", "stop")
    try:
        with (
            pytest.raises(
                StudyUnavailableError, match=r"stopped answering .*; once it answers the same command"
            ) as told,
            lasting("postgresql://127.0.0.1/postgres"),
        ):
            book.report(0, 100, 0.5)
        assert "\n" not in str(told.value)
    finally:
        server.ctl("start")
    again = driver(tmp_path, "a", server.address, study="lasting")
    assignment = again.next()
    assert assignment is not None
    assert (assignment.number, assignment.attempt) == (0, 2)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyUnavailableError, match=r"install its driver, for PostgreSQL pip install .*\[postgres\]"):
        driver(tmp_path, "a", "postgresql://me:pw@127.0.0.1:1/studies")


def test_a_server_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -c constraints.txt -e '.[postgres]'")
    began = time.monotonic()
    with pytest.raises(
        StudyUnavailableError, match=r"search\.storage=postgresql://127\.0\.0\.1:1/studies does not answer"
    ):
        driver(tmp_path, "a", "postgresql://me:pw@127.0.0.1:1/studies")
    assert time.monotonic() - began < 60
