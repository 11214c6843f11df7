"""What every test may rely on: a clean environment, the public data where it exists, one Ray at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Small networks on shared cores: more threads per process only make them wait for each other. Set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton's kernels run on its interpreter; read when torch imports Triton.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What a shell starts in the background ignores Ctrl-C, and hands that on; what the tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from the tracking server, the Ray cluster and the terminal's width of whoever runs them."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "RAY_ADDRESS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shared_data() -> Path:
    """The folder of public data sets beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}")
    return folder


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A local Ray with four CPU slots for one test module. Ended before anything else may start another."""
    import ray

    from efafnet.platform.cluster import ClusterConfig, connect

    connect(ClusterConfig(address="local", num_cpus=4))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite store of MLflow; a fresh one takes seconds to make, so the tests of a module share it."""
    from efafnet.platform.tracking import prepare_tracking

    return prepare_tracking(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def run_id(uri: str, request: pytest.FixtureRequest) -> str:
    """A run in that store, named after the test."""
    from efafnet.platform.tracking import create_run

    return create_run(uri, "tests", request.node.name)
