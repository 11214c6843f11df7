"""What every test may rely on: a clean environment, the public data where it exists, one Ray at a time."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efafnet.platform import tracking
from efafnet.platform.mlflow_store import create_sqlite
from tests import rays
from tests.holds import Holds
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[1]

# Small networks on shared cores: more threads per process only make them wait for each other. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray's workers yield to everything else; beside other tests they would starve, and time limits would pass.
os.environ.setdefault("RAY_worker_niceness", "0")

rays.apart()

# Without a GPU, Triton's kernels run on its interpreter; read when torch imports Triton.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Imports and collected tests make 1.2 million objects that stay: nothing to look for garbage among. On again below.
gc.disable()

# What a shell starts in the background ignores Ctrl-C, and hands that on; what the tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


_frozen_modules = 0
"""How many modules were imported when what they made was last left out of the collections of garbage."""


def _freeze() -> None:
    """Leave what is there out of Python's collections of garbage: each training begins with one, and each would take
    .4 seconds for nothing."""
    global _frozen_modules
    gc.freeze()
    _frozen_modules = len(sys.modules)


def pytest_collection_finish() -> None:
    """Freeze what all tests need."""
    _freeze()
    gc.enable()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Freeze what the first test to need it has imported, torch's compiler among it: as much as torch itself."""
    if nextitem is not None and len(sys.modules) > _frozen_modules + 100:
        gc.collect()
        _freeze()


def pytest_unconfigure() -> None:
    """Remove the directory of this process's Rays: processes of pytest-xdist end without asking atexit."""
    rays.remove()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Give a test that draws from torch's own generator the same numbers in every process, whatever ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _as_nobody(_no_ray_is_left_behind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from the tracking server, the Ray cluster and the terminal's width of whoever runs them."""
    mlflows = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "EFAFNET_ADDRESSES")
    for name in (*mlflows, "RAY_ADDRESS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shared_data() -> Path:
    """The folder of public data sets beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}")
    return folder


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare the slow tests, in each of their processes, the imports of modules that hold none."""
    if config.option.markexpr != "slow" or collection_path.suffix != ".py":
        return None
    return True if "mark.slow" not in collection_path.read_text() else None


LONGEST = (
    *("test_tune", "test_faults", "test_ray_worker", "test_demo", "test_study", "test_variants", "test_promotion"),
    *("test_export", "test_evaluate", "test_serving_ray", "test_packaging", "test_resume", "test_prepare_ray"),
    *("test_pareto", "test_predict"),
)
"""Modules with ten seconds of slow tests and more, the longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the slow tests that take longest, so that no process idles in the end; in a module with those that
    start Rays of their own: beside them the shared one would use a twentieth of a core."""
    if config.option.markexpr != "slow":
        return
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (place.get(item.path.stem, len(place)), "ray_local" in getattr(item, "fixturenames", ()))
    )


@pytest.fixture(autouse=True)
def _no_ray_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a Ray connected which it found disconnected: those after it would use that one. To be
    asked for first, so that it looks once nothing is patched any more."""
    before = rays.connected()
    yield
    assert rays.connected() in ("", before, rays.shared())


@pytest.fixture(scope="session")
def _rays_end() -> Iterator[None]:
    yield
    rays.leave()


@pytest.fixture
def ray_local(_rays_end: None) -> None:
    """A local Ray with four CPU slots, shared by all tests that ask for it."""
    rays.share()


@pytest.fixture
def holds(ray_local: None) -> Iterator[Holds]:  # noqa: ARG001 (one Ray)
    """Where the trainings of a test on that Ray wait for it."""
    holds = rays.holds()
    yield holds
    holds.clear()


@pytest.fixture
def ray_idle(ray_local: None) -> None:  # noqa: ARG001 (one Ray)
    """That Ray with all its slots free: what the tests before have ended may take a moment to give its own back."""
    import ray

    wait_for("its CPUs to be free", lambda: ray.available_resources().get("CPU", 0) >= rays.CPUS)


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an MLflow store that holds nothing. To be copied: making one takes more than a second, so the
    processes of pytest-xdist share one, too."""
    own = tmp_path_factory.getbasetemp()
    file = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "fresh" / "mlflow.db"
    create_sqlite(file)
    return file


@pytest.fixture(scope="session")
def fresh_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a search that holds nothing, to be copied like the store: making one takes a tenth of a second."""
    import optuna

    file = tmp_path_factory.mktemp("fresh") / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{file}").remove_session()
    return file


@pytest.fixture(autouse=True)
def _new_stores_are_copies(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the sqlite stores of MLflow and of searches that a test makes begin as copies of one; processes it starts
    make them anew."""

    def copied(name: str, file: Path) -> None:
        if not file.exists() and file.parent.is_dir():
            shutil.copyfile(request.getfixturevalue(name), file)

    def create(file: Path) -> None:
        copied("fresh_store", file)
        create_sqlite(file)

    monkeypatch.setattr(tracking, "create_sqlite", create)
    searching: Any = sys.modules.get("efafnet.pipelines.search.study_db")
    if searching is None:  # nothing that was collected searches, and Optuna need not be imported
        return
    check = searching._check

    def checked(file: Path) -> None:
        check(file)
        if file.is_absolute():  # ":memory:" is no file
            copied("fresh_study", file)

    monkeypatch.setattr(searching, "_check", checked)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, fresh_store: Path) -> str:
    """A sqlite store of MLflow that the tests of a module share."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copyfile(fresh_store, file)
    return f"sqlite:///{file}"


@pytest.fixture
def run_id(uri: str, request: pytest.FixtureRequest) -> str:
    """A run in that store, named after the test."""
    from efafnet.platform.tracking import create_run

    return create_run(uri, "tests", request.node.name)
