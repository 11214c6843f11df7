"""What repeated runs say, against values worked out by hand, from tables of t, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from efafnet.pipelines.study.statistics import (
    Comparison,
    Difference,
    Measured,
    Noise,
    block_residual,
    compare,
    further_runs,
    holm,
    noise_of,
    rank_correlation,
)


def rows_of(table: dict[str, list[float]]) -> list[Measured]:
    return [Measured(name, dict(enumerate(values))) for name, values in table.items()]


def difference_of(comparison: Comparison, name: str) -> Difference:
    (found,) = [row.difference for row in comparison.rows if row.name == name]
    assert found is not None
    return found


def test_two_rows_are_the_paired_t_test() -> None:
    """Differences 2, 4, 3, 7: mean 4, s = sqrt(14 / 3); t(.975, 3) = 3.1824 from the table."""
    result = compare(rows_of({"old": [10, 20, 30, 40], "new": [12, 24, 33, 47]}), "old")
    difference = difference_of(result, "new")
    error = math.sqrt(14 / 3) / 2
    assert difference.value == 4
    assert difference.span is not None
    assert difference.by_seeds == difference.span
    assert difference.span.half == pytest.approx(3.18245 * error, rel=1e-5)
    assert difference.span.low + difference.span.high == pytest.approx(8)
    # t = 3.7033 with 3 degrees of freedom, whose distribution has a closed form
    t = 4 / error
    tail = 0.5 - (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3)) / math.pi
    assert difference.p == pytest.approx(2 * tail)
    assert difference.p_holm == difference.p
    assert difference.distinguishable
    assert difference.further_runs == 0


def test_pairing_takes_out_what_a_seed_does_to_all_rows() -> None:
    """Seeds of very different luck, rows exactly one apart: within rows a spread of 10, between rows none."""
    noise = noise_of(rows_of({"a": [0, 10, 20], "b": [1, 11, 21], "c": [2, 12, 22]}))
    assert noise is not None
    assert (noise.within, noise.within_df, noise.residual_df) == (10, 6, 4)
    assert noise.residual == pytest.approx(0, abs=1e-12)


def test_the_residual_of_a_table_by_hand() -> None:
    """Row means 2 and 5, seed means 2, 3, 5.5: what is left is -.5 .5 0 / .5 -.5 0."""
    left, df = block_residual(np.array([[0.0, 2.0, 4.0], [4.0, 4.0, 7.0]]))
    assert df == 2
    assert left == pytest.approx(math.sqrt(4 * 0.25 / 2))
    assert block_residual(np.zeros((1, 5))) == (0.0, 0)


def test_the_mean_of_a_row_has_the_pooled_spread() -> None:
    """Sums of squares 2 and 8 over 2 + 2 degrees of freedom: s = sqrt(2.5); t(.975, 4) = 2.7764."""
    result = compare(rows_of({"a": [1, 2, 3], "b": [2, 4, 6]}), "a")
    row = result.rows[1]
    assert row.span is not None
    assert (row.mean, row.runs) == (4, 3)
    assert row.span.half == pytest.approx(2.77645 * math.sqrt(2.5 / 3), rel=1e-5)


def test_holm_by_its_textbook_example() -> None:
    """.005, .01, .03, .04 times 4, 3, 2, 1, never falling: .02, .03, .06, .06."""
    adjusted, levels = holm([0.01, 0.04, 0.03, 0.005], 0.05)
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert levels == pytest.approx([0.05 / 3, 0.05, 0.025, 0.0125])
    assert holm([0.6, 0.7], 0.05)[0] == [1.0, 1.0]
    assert holm([], 0.05) == ([], [])


def test_one_run_each_tells_nothing() -> None:
    result = compare(rows_of({"a": [1], "b": [9]}), "a")
    difference = difference_of(result, "b")
    assert result.noise is None
    assert (difference.value, difference.span, difference.p, difference.distinguishable) == (8, None, None, False)
    assert result.rows[1].span is None


def test_rows_are_compared_on_the_seeds_they_share() -> None:
    table = [Measured("a", {0: 1.0, 1: 2.0, 2: 3.0}), Measured("b", {0: 2.0, 1: 3.0, 2: 4.5}), Measured("c", {2: 9.0}),
             Measured("d", {})]  # fmt: skip
    result = compare(table, "a")
    difference = difference_of(result, "c")
    assert (difference.value, difference.pairs) == (6.0, 1)
    assert [row.name for row in result.rows] == ["a", "b", "c"]  # d has no runs
    assert result.noise is not None
    assert result.noise.residual_df == 2  # of a and b, which are complete
    assert compare(table, "d").rows[0].difference is None


def test_the_variances_of_seeds_and_images_are_added() -> None:
    """Differences 1 and 3 (s = sqrt 2, over two seeds a variance of 1) and draws whose mean difference spreads by 2."""
    spread = np.array([-2.0, 0.0, 2.0])  # ddof 1: standard deviation 2
    old = Measured("old", {0: 0.0, 1: 0.0}, {0: np.zeros(3), 1: np.zeros(3)})
    new = Measured("new", {0: 1.0, 1: 3.0}, {0: 1.0 + 2 * spread, 1: 3.0 + 0 * spread})
    difference = difference_of(compare([old, new], "old"), "new")
    assert difference.image_error == pytest.approx(2)
    # variance 1 + 4 = 5, degrees of freedom 5^2 / (1^2 / 1) = 25: t(.975, 25) = 2.0595
    assert difference.span is not None
    assert difference.span.half == pytest.approx(2.05954 * math.sqrt(5), rel=1e-5)
    assert difference.by_seeds is not None
    assert difference.by_seeds.half == pytest.approx(12.7062, rel=1e-5)  # t(.975, 1), of an error of 1
    assert difference.by_images is not None
    assert difference.by_images.half == pytest.approx(2 * 0.95)  # quantiles of three draws, interpolated


def test_how_many_runs_are_needed_follows_the_rule_of_thumb() -> None:
    """n = (2 s / d)^2 in all: s = 2, d = 1 asks for about 16; the exact t and 1.96 for 2 make it 18."""
    plain = Difference(1.0, 3, None, None, None, image_error=0.0, p=None)
    noise = Noise(2.0, 4, 2.0 / math.sqrt(2), 2)
    assert further_runs(plain, noise, 0.05) == 18 - 3
    # t(.975, 17) = 2.1098: 1 / (2 / sqrt 18) = 2.1213 is beyond it; t(.975, 16) = 2.1199: sqrt(17) / 2 = 2.0616 is not
    assert further_runs(Difference(1.0, 3, None, None, None, 0.6, None), noise, 0.05) is None  # 1 / .6 < 1.96


def test_identical_figures_are_no_difference() -> None:
    result = compare(rows_of({"a": [0, 0, 0], "b": [0, 0, 0], "c": [1, 1, 1]}), "a")
    assert difference_of(result, "b").p == 1
    assert not difference_of(result, "b").distinguishable
    assert difference_of(result, "c").distinguishable


def test_false_claims_are_as_rare_as_promised() -> None:
    """Six rows without any difference, 3 seeds: in at most about 5 % of the tables is anything distinguishable."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        seeds = generator.normal(0, 5, 3)
        table = {str(row): list(seeds + generator.normal(0, 1, 3)) for row in range(6)}
        wrong += bool(compare(rows_of(table), "0").distinguishable)
    assert wrong / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_true_differences_are_found() -> None:
    generator = np.random.default_rng(2)
    found = 0
    for _ in range(100):
        table = {str(row): list(generator.normal(4 * (row == 5), 1, 3)) for row in range(6)}
        names = [row.name for row in compare(rows_of(table), "0").distinguishable]
        found += "5" in names
    assert found > 80


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 2, 3], [9, 8, 7]) == pytest.approx(-1)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
