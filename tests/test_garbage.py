"""Python's collector of garbage: off for a while, and kept from what stays."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from efafnet.platform.garbage import collection_paused, importing

ROOT = Path(__file__).resolve().parents[1]
FREE = """
import gc
from contextlib import suppress
from efafnet.platform.garbage import collected_between_points

made = [[number] for number in range(20_000)]
with suppress(KeyError), collected_between_points():
    assert not gc.isenabled()
    assert gc.get_freeze_count() > len(made)
    raise KeyError
assert gc.isenabled()
assert gc.get_freeze_count() == 0
"""
FROZEN = """
import gc
from efafnet.platform.garbage import collected_between_points

made = [[number] for number in range(20_000)]
gc.freeze()
frozen = gc.get_freeze_count()
with collected_between_points():
    assert not gc.isenabled()
    later = [[number] for number in range(20_000)]
    assert gc.get_freeze_count() == frozen > len(made)
assert gc.isenabled()
assert gc.get_freeze_count() == frozen
"""


def test_nothing_is_collected_meanwhile() -> None:
    @collection_paused()
    def fails() -> None:
        assert not gc.isenabled()
        raise KeyError

    assert gc.isenabled()
    for _ in range(2):
        with pytest.raises(KeyError):
            fails()
        assert gc.isenabled()


@pytest.mark.parametrize(("count", "left_out"), [(101, True), (100, False)])
def test_what_is_imported_is_left_out_of_later_collections(
    monkeypatch: pytest.MonkeyPatch, count: int, left_out: bool
) -> None:
    """Only where many modules came: in a process that has them already, garbage from before is still collected."""
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        for number in range(count):
            monkeypatch.setitem(sys.modules, f"imported_{number}", ModuleType(f"imported_{number}"))
    assert gc.isenabled()
    assert (gc.get_freeze_count() > before) == left_out


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_stays_out_of_the_steps_and_comes_back() -> None:
    """Also where training ends by an error; what was made before the loop is walked by no collection within it.

    In a process of its own, as is the one below: what the tests have imported takes seconds to walk.
    """
    subprocess.run([sys.executable, "-c", FREE], cwd=ROOT, check=True)


def test_the_collector_rests_during_a_run_and_what_a_program_froze_stays_frozen() -> None:
    assert gc.get_freeze_count() > 0, "conftest froze what all tests need"
    subprocess.run([sys.executable, "-c", FROZEN], cwd=ROOT, check=True)
