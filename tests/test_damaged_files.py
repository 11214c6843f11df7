"""Files of runs, checkpoints, stores and searches, damaged in every way: read as they were, or refused in one sentence.

Each case is a function of its number alone. What is asserted of all: no exception that the command line would show as a
traceback, and no value that is read and is not what was written.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from efafnet.pipelines.crops.schema import PERSON_SCHEMA
from efafnet.pipelines.crops.store import GROUND_TRUTH, IMAGES, REJECTS, CropStore
from efafnet.pipelines.search import study_db
from efafnet.pipelines.search.earlier import open_study
from efafnet.pipelines.search.ledger import Ledger
from efafnet.pipelines.search.study_db import StudyFileError, StudyUnavailableError
from efafnet.pipelines.training.rundir import RunDirectory, TrainResult
from efafnet.pipelines.user_errors import user_message
from efafnet.platform.checkpoint import load_checkpoint, save_checkpoint
from efafnet.platform.configuration import load_preset
from efafnet.tune_spaces.reading import parse_space
from tests import crop_data

SEED = 20240
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1e308, 2**70, "", "x", "\x1b[2J", [], {}, [[]], {"a": []})


def bytes_changed(content: bytes, chance: random.Random) -> bytes:
    """One of: a flipped bit, a byte overwritten, a cut, a piece doubled, a piece of zeros, another end."""
    changed, at = bytearray(content), chance.randrange(max(1, len(content)))
    kind = chance.choice(["bit", "bit", "byte", "cut", "double", "zero", "tail"])
    length = chance.randrange(1, 64)
    if kind == "bit":
        changed[at] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        changed[at] = chance.randrange(256)
    elif kind == "cut":
        del changed[at:]
    elif kind == "double":
        changed[at:at] = changed[at : at + length]
    elif kind == "zero":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    else:
        changed += bytes(chance.randrange(256) for _ in range(length))
    return bytes(changed)


def json_changed(content: bytes, chance: random.Random) -> bytes:
    """A value somewhere in the tree replaced, or a key lost."""
    tree = json.loads(content)
    node: Any = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = chance.choice(keys)
        inner = node[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.6:
            node = inner
            continue
        if isinstance(node, dict) and chance.random() < 0.3:
            del node[key]
        else:
            node[key] = chance.choice(VALUES)
        return json.dumps(tree).encode()


def mutated(path: Path, number: int) -> bytes:
    chance = random.Random(SEED + number)
    content = path.read_bytes()
    by_value = path.suffix == ".json" and chance.random() < 0.5
    return (json_changed if by_value else bytes_changed)(content, chance)


def outcomes(file: Path, count: int, read: Callable[[], Any], *, lenient: bool = False) -> Counter[str]:
    """What became of ``count`` mutations of a file: ``same`` or ``refused``; anything else fails here."""
    whole, good = file.read_bytes(), read()
    found: Counter[str] = Counter()
    for number in range(count):
        file.write_bytes(mutated(file, number) if number else b"")
        value, failure = None, None
        try:
            value = read()
        except Exception as error:
            failure = error
        file.write_bytes(whole)
        if failure is None:
            assert lenient or value == good, f"mutation {number} of {file.name} is read as something else"
            found["same"] += 1
        else:
            message = user_message(failure)
            assert message is not None, f"mutation {number} of {file.name} is a traceback: {failure!r}"
            assert "\n" not in message.strip(), f"mutation {number} of {file.name} takes several lines: {message}"
            assert len(message) < 1000, message
            found["refused"] += 1
    return found


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "mine")
    run.path.mkdir()
    record = run.claim({"optimizer.lr": 1e-3, "data.train": "ab" * 32, "loss.kind": "mse", "input": [256, 192]})
    run.record(replace(record, mlflow_run_id="f" * 32, tracking_uri="http://mlflow:5000"), "seed: 1\n")
    run.finish(TrainResult(run.path, run.path / "checkpoints/step-7", {"ap": 0.5, "loss": 0.25}, "f" * 32))
    return run


def test_records_of_runs(run_dir: RunDirectory) -> None:
    found = outcomes(run_dir.path / "run.json", 50, run_dir.known) + outcomes(run_dir.result_file, 50, run_dir.result)
    assert found.total() == 100
    assert found["refused"] > 80


def unsealed(file: Path) -> None:
    """As an earlier version wrote it, or a hand that edits it."""
    content = json.loads(file.read_bytes())
    del content["sha256"]
    file.write_text(json.dumps(content))


def test_records_without_digests(run_dir: RunDirectory) -> None:
    """What is changed there cannot be known; what makes no sense is refused all the same."""
    whole = {file: file.read_bytes() for file in (run_dir.path / "run.json", run_dir.result_file)}
    good = run_dir.known(), run_dir.result()
    for file in whole:
        unsealed(file)
    assert (run_dir.known(), run_dir.result()) == good
    found = outcomes(run_dir.path / "run.json", 30, run_dir.known, lenient=True)
    found += outcomes(run_dir.result_file, 30, run_dir.result, lenient=True)
    assert found["refused"] > 25
    for file, content in whole.items():
        file.write_bytes(content)


def test_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    save_checkpoint(
        folder,
        weights={"network": {"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}},
        state={"step": 7, "rng": torch.arange(5, dtype=torch.uint8)},
        config={"lr": 0.5, "name": "x"},
        meta={"step": 7, "metrics": {"ap": 0.25}, "skeleton": {"joints": ["a", "b"]}},
    )

    def read() -> Any:
        found = load_checkpoint(folder)
        weights = {name: {key: t.tolist() for key, t in part.items()} for name, part in found.weights.items()}
        return weights, {**found.state, "rng": found.state["rng"].tolist()}, found.config, found.meta

    found = sum((outcomes(file, 20, read) for file in sorted(folder.iterdir())), Counter[str]())
    assert found.total() == 80
    assert found["refused"] > 70
    unsealed(folder / "meta.json")
    assert outcomes(folder / "meta.json", 30, read, lenient=True)["refused"] > 15


def test_stores(tmp_path: Path) -> None:
    store = crop_data.make_store(tmp_path, images=2, rows_per_group=4)

    def read() -> Any:
        again = CropStore.open(store.path)
        tables = [again.table(name).to_pylist() for name in (GROUND_TRUTH, IMAGES, REJECTS)]
        return again.manifest, tables, again.columns(PERSON_SCHEMA.names).to_pylist()

    files = [
        store.path / "manifest.json",
        *(store.path / r.name for r in (*store.manifest.shards, *store.manifest.tables)),
    ]
    found = sum((outcomes(file, 16, read) for file in files), Counter[str]())
    assert found.total() == 80
    assert found["refused"] > 60


SPACE = parse_space("search: {optimizer.lr: {float: [1e-4, 1e-2], log: true}}", "my.yaml")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a search with two finished trials."""
    place = tmp_path_factory.mktemp("searched")
    book = reopen(place / "study.db")
    for _ in range(2):
        assignment = book.next()
        assert assignment is not None
        book.report(assignment.number, 10, 0.5)
        book.finish(assignment.number, "complete")
        (place / "trials" / f"{assignment.number:04d}").mkdir(parents=True)
    return place


@pytest.fixture
def study(searched: Path, tmp_path: Path) -> Path:
    """A search's study.db with two finished trials, whose directories are there."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    return tmp_path / "study.db"


def reopen(path: Path) -> Ledger:
    return Ledger(path, "s", SPACE, trials=4, sampler="random", seed=1, startup=2)


def test_studies(study: Path) -> None:
    """sqlite has no check sums: a changed value is read as it stands, so only tracebacks are looked for."""

    def read() -> Any:
        return [(trial.state, trial.value, trial.params) for trial in open_study(study).trials]

    found = outcomes(study, 40, read, lenient=True)
    assert found["refused"] >= 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, but .*/trials holds 2 trials; put back a copy of it, or remove"),
        (None, "is missing, but .*/trials holds 2 trials"),
        (b"SQLite format 3\0" + bytes(range(256)) * 40, "is damaged, or no search's study"),
        (b"no database at all" * 100, r"is damaged, or no search's study \(file is not a database\)"),
    ],
)
def test_a_study_that_is_no_study(study: Path, content: bytes | None, message: str) -> None:
    study.unlink()
    if content is not None:
        study.write_bytes(content)
    with pytest.raises(StudyFileError, match=message):
        reopen(study)
    assert not study.exists() if content is None else study.read_bytes() == content, "nothing is overwritten"


def test_anothers_database(study: Path) -> None:
    study.unlink()
    database = sqlite3.connect(study)
    database.execute("CREATE TABLE runs (id INTEGER)")
    database.commit()
    database.close()
    with pytest.raises(StudyFileError, match="is a database of something else, without studies"):
        reopen(study)


@pytest.mark.parametrize(
    ("version", "remedy"), [("v2.6.0.a", "optuna storage upgrade"), ("v9.0.0", "install -U optuna")]
)
def test_a_study_of_another_optuna(study: Path, version: str, remedy: str) -> None:
    """Its tables, by the version that they name: an older one can be brought up to date, a later one is not known."""
    database = sqlite3.connect(study)
    database.execute("UPDATE alembic_version SET version_num = ?", [version])
    database.commit()
    database.close()
    for _ in range(2):
        with pytest.raises(StudyFileError, match=f"no longer compatible with the table schema.*{remedy}"):
            reopen(study)


def test_a_locked_study(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(study_db, "PATIENCE_S", 0.1)
    holder = sqlite3.connect(study)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StudyUnavailableError, match="is locked by another program, say optuna-dashboard or a backup"):
        reopen(study)
    assert capsys.readouterr().err.count("is locked by another program; waiting up to") == 1
    holder.close()
    assert reopen(study).remaining() == 2


def test_a_fresh_search_needs_no_file(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    assert reopen(tmp_path / "study.db").remaining() == 4


def test_presets(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\nloss: {kind: ohkm, hard_joints: 8}\nschedule: {milestones: [170, 200]}\n")
    found = outcomes(file, 50, lambda: load_preset(str(file)), lenient=True)
    assert found.total() == 50


def test_mutations_are_mutations(run_dir: RunDirectory) -> None:
    file = run_dir.path / "run.json"
    cases = [mutated(file, number) for number in range(50)]
    assert len(set(cases)) > 45
    assert sum(case != file.read_bytes() for case in cases) > 45
    assert cases[3] == mutated(file, 3)
