"""Tables of real runs that searches are replayed on."""

from __future__ import annotations

import pytest

from benchmarks.search_table import to_the_end


def test_a_run_that_diverged_has_found_nobody_from_there_on() -> None:
    assert to_the_end({640: 0.1, 1280: 0.2}, [640, 1280, 1920, 2560]) == {640: 0.1, 1280: 0.2, 1920: 0.0, 2560: 0.0}
    assert to_the_end({}, [640, 1280]) == {640: 0.0, 1280: 0.0}


def test_a_figure_that_was_not_heard_is_not_taken_for_0() -> None:
    with pytest.raises(ValueError, match=r"after \[640, 1280\] samples were not heard"):
        to_the_end({1920: 0.3, 2560: 0.4}, [640, 1280, 1920, 2560])
