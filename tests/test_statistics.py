"""What repeated runs say, against values worked out by hand, from tables of t, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from benchmarks.bench_statistics import Case, power, rates
from efafnet.pipelines.study.additive import fit
from efafnet.pipelines.study.statistics import (
    Comparison,
    Difference,
    Judging,
    Measured,
    compare,
    holm,
    rank_correlation,
)
from efafnet.pipelines.study.uncertainty import Runs, Scatter


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
    assert difference.further_runs is None


def test_pairing_takes_out_what_a_seed_does_to_all_rows() -> None:
    """Seeds of very different luck, rows exactly one apart: within rows a spread of 10, between rows none."""
    noise = compare(rows_of({"a": [0, 10, 20], "b": [1, 11, 21], "c": [2, 12, 22]}), "a").noise
    assert noise is not None
    assert (noise.within, noise.within_df, noise.residual_df) == (10, 6, 4)
    assert noise.residual == pytest.approx(0, abs=1e-12)


def test_the_residual_of_a_table_by_hand() -> None:
    """Row means 2 and 5, seed means 2, 3, 5.5: what is left is -.5 .5 0 / .5 -.5 0."""
    found = fit({"a": dict(enumerate([0.0, 2.0, 4.0])), "b": dict(enumerate([4.0, 4.0, 7.0]))})
    assert found.df == 2
    assert found.residual == pytest.approx(math.sqrt(4 * 0.25 / 2))
    alone = fit({"a": dict.fromkeys(range(5), 0.0)})
    assert (alone.residual, alone.df) == (0.0, 0)


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


def test_a_run_that_is_missing_costs_that_run_alone() -> None:
    """c has seed 2 alone. The levels of a and b, and so of the seeds, come from their own six runs: seed 2 lies at
    (3 + 4.5) / 2 = 3.75 where all lie at 31 / 12, so it lifts by 7 / 6 and a, at 2, would have 19 / 6 there."""
    table = [Measured("a", {0: 1.0, 1: 2.0, 2: 3.0}), Measured("b", {0: 2.0, 1: 3.0, 2: 4.5}), Measured("c", {2: 9.0}),
             Measured("d", {})]  # fmt: skip
    result = compare(table, "a")
    difference = difference_of(result, "c")
    assert difference.value == pytest.approx(9 - 19 / 6)
    assert difference.pairs == 1
    assert difference.span is not None
    assert [row.name for row in result.rows] == ["a", "b", "c"]  # d has no runs
    assert result.noise is not None
    assert result.noise.residual_df == 2  # seven runs less three rows, three seeds and what both have in common
    assert compare(table, "d").rows[0].difference is None


def test_the_variances_of_seeds_and_images_are_added() -> None:
    """Differences 1 and 3 (s = sqrt 2, over two seeds a variance of 1) and draws whose mean difference spreads by 2."""
    spread = np.array([-2.0, 0.0, 2.0])  # ddof 1: standard deviation 2
    old = Measured("old", {0: 0.0, 1: 0.0}, {0: np.zeros(3), 1: np.zeros(3)})
    new = Measured("new", {0: 1.0, 1: 3.0}, {0: 1.0 + 2 * spread, 1: 3.0 + 0 * spread})
    difference = difference_of(compare([old, new], "old"), "new")
    assert difference.image_error == pytest.approx(2)
    # variance 1 + 4 = 5; t(.975, 1) = 12.7062 and 1.959964 for ever so many images, weighted: (12.7062 + 4 * 1.96) / 5
    assert difference.span is not None
    assert difference.span.half == pytest.approx((12.7062 + 4 * 1.959964) / 5 * math.sqrt(5), rel=1e-5)
    assert difference.by_seeds is not None
    assert difference.by_seeds.half == pytest.approx(12.7062, rel=1e-5)  # t(.975, 1), of an error of 1
    assert difference.by_images is not None
    # The mean difference is 2 and moves by 2 from draw to draw: a normal interval on the figures' own scale.
    assert (difference.by_images.low, difference.by_images.high) == pytest.approx((2 - 1.959964 * 2, 2 + 1.959964 * 2))


def test_a_probability_is_the_level_at_which_the_interval_ends() -> None:
    """Of seeds alone it is Student's; of both it lies between the two, and agrees with the interval."""
    t = 3.0 / (2.0 / math.sqrt(3))  # with two degrees of freedom t lies within with probability t / sqrt(2 + t^2)
    assert Scatter(2.0, 2).p(3.0, 3) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    both = Scatter(2.0, 2, 0.9, 40.0)
    for confidence in (0.5, 0.95, 0.999):
        assert both.p(both.span(0.0, 3, confidence).high, 3) == pytest.approx(1 - confidence, rel=1e-9)
    assert Scatter(0.0, 2, 1.0).p(1.959964, 3) == pytest.approx(0.05, rel=1e-5)
    assert Scatter(0.0, 2).p(0.0, 3) == 1.0


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_seeds_and_images_together_reject_no_more_than_they_should(share: float) -> None:
    """Three seeds and images that have a share of their variance: 4,000 true hypotheses, at 5 % and at a sixth of it.
    Satterthwaite's degrees of freedom would reject 7.5 and 2.8 % of them where the share is a fifth."""
    generator = np.random.default_rng(4)
    values = generator.normal(0, math.sqrt((1 + share) / 3), 4000)
    spreads = np.sqrt(generator.chisquare(2, 4000) / 2)
    for level, most in ((0.05, 0.05), (0.05 / 6, 0.012)):
        ends = [Scatter(float(spread), 2, math.sqrt(share / 3)).span(0.0, 3, 1 - level).high for spread in spreads]
        assert (np.abs(values) > ends).mean() < most


def test_few_images_widen_the_intervals_by_students_t() -> None:
    """Of 5 effective images the draws' spread is too small by 4 / 5 in its square, and t(.975, 4) is 2.7764."""
    moved = np.array([-2.0, 0.0, 2.0])
    old = Measured("old", {0: 50.0, 1: 50.0}, {0: 50 + 0 * moved, 1: 50 + 0 * moved}, images=5)
    new = Measured("new", {0: 51.0, 1: 53.0}, {0: 51 + moved, 1: 53 + moved}, images=5)
    result = compare([old, new], "old")
    difference = difference_of(result, "new")
    assert difference.image_error == pytest.approx(2 * math.sqrt(5 / 4))
    assert difference.by_images is not None
    assert difference.by_images.half == pytest.approx(2.776445 * 2 * math.sqrt(5 / 4), rel=1e-5)
    # a row's own figure is a share: the same on the logit scale, where 50, 52 and 54 % lie at 0, .0800 and .1603
    logits = special.logit([0.50, 0.52, 0.54])
    reach = 2.776445 * math.sqrt(5 / 4) * float(np.std(logits, ddof=1))
    middle = 2 * logits[1] - logits.mean()
    assert result.rows[1].by_images is not None
    assert result.rows[1].by_images.low == pytest.approx(100 * special.expit(middle - reach), rel=1e-5)


def test_how_many_runs_are_needed_follows_the_rule_of_thumb() -> None:
    """n = (2 s / d)^2 in all: s = 2, d = 1 asks for about 16; the exact t and 1.96 for 2 make it 18."""
    assert Scatter(2.0, 2).needed(1.0, 3, 0.05) == 18
    # t(.975, 17) = 2.1098: 1 / (2 / sqrt 18) = 2.1213 is beyond it; t(.975, 16) = 2.1199: sqrt(17) / 2 = 2.0616 is not
    assert Scatter(2.0, 2, 0.6).needed(1.0, 3, 0.05) is None  # 1 / .6 < 1.96


def test_more_seeds_are_a_range_since_a_few_runs_know_little() -> None:
    """A difference of 2 known to within t(.9, 4) = 1.5332 errors of 1: the true one lies between .47 and 3.53."""
    few = Scatter(math.sqrt(3), 4)
    ends = [few.needed(2 + step * 1.533206, 3, 0.05) for step in (1, -1)]
    assert ends[0] == 3  # 3.53 beats t(.975, 4) = 2.776; of 2 seeds 3.53 / (1.732 / sqrt 2) = 2.88 does not 4.303
    assert few.further(2.0, 3, 0.05) == Runs(1, (ends[1] or 0) - 3)
    assert str(few.further(0.5, 3, 0.05)).endswith(" or more")  # it may be nothing at all
    # A difference that the user names depends on the spread alone: 18 as above, between sqrt(2 / 4.605) of it and more.
    seeds, span = Scatter(2.0, 2).resolving(1.0, 3, 0.05)
    assert seeds == 18
    assert span.fewest == Scatter(2 * math.sqrt(2 / 4.60517), 2).needed(1.0, 3, 0.05)
    assert span.most == Scatter(2 * math.sqrt(2 / 0.210721), 2).needed(1.0, 3, 0.05)
    resolved = compare(rows_of({"a": [10, 20, 30, 40], "b": [12, 24, 33, 47]}), "a", resolve=1.0).resolved
    assert resolved is not None
    assert resolved[1] == Scatter(math.sqrt(14 / 3), 3).needed(1.0, 4, 0.05)


def test_the_chance_that_a_run_is_better() -> None:
    """Equal means leave .5; a difference of one spread, 84 %; and of 100 intervals 95 hold what is true."""
    assert Scatter(1.0, 4).chance(0.0, 3, 0.95).value == 0.5
    sure = Scatter(2.0, 4).chance(2.0, 3, 0.95)
    assert sure.value == pytest.approx(0.841345, rel=1e-5)
    generator = np.random.default_rng(3)
    true, held = float(special.ndtr(0.7)), 0
    for mean, square in zip(
        0.7 + generator.normal(0, 1, 2000) / math.sqrt(3), generator.chisquare(4, 2000), strict=True
    ):
        span = Scatter(math.sqrt(square / 4), 4).chance(float(mean), 3, 0.95).span
        held += span.low <= true <= span.high
    assert abs(held / 2000 - 0.95) < 0.015


def test_a_missing_run_takes_no_verdict_away() -> None:
    """One row has a seed more: nothing of the others changes; and where every row lacks another run, all are judged."""
    table = rows_of({"a": [50.0, 51.0, 52.0], "b": [60.1, 60.9, 62.2]})
    before = difference_of(compare(table, "a"), "b")
    more = [Measured("a", {**table[0].by_seed, 3: 50.7}), table[1]]
    after = difference_of(compare(more, "a"), "b")
    assert after.distinguishable
    assert after.value == pytest.approx(before.value)
    assert after.p == pytest.approx(before.p)
    figures = {name: {seed: 10.0 * row + seed + 0.1 * ((row * seed) % 3) for seed in range(3) if seed != row % 3}
               for row, name in enumerate("abcd")}  # fmt: skip
    holes = compare([Measured(name, by_seed) for name, by_seed in figures.items()], "a")
    assert [row.name for row in holes.distinguishable] == ["b", "c", "d"]
    assert holes.noise is not None
    assert holes.noise.residual_df == 8 - 4 - 3 + 1


def test_rows_without_any_chain_of_seeds_are_not_compared() -> None:
    parts = [Measured("a", {0: 1.0, 1: 2.0}), Measured("b", {2: 3.0, 3: 5.0}), Measured("c", {0: 4.0, 1: 5.5})]
    result = compare(parts, "a")
    assert [row.difference is not None for row in result.rows] == [False, False, True]
    chained = compare([*parts, Measured("d", {1: 1.0, 2: 2.0})], "a")
    assert difference_of(chained, "b").pairs == 0  # by way of d: 2 + (3 - 2) - (2 - 1) and the like
    assert difference_of(chained, "b").span is not None


def test_a_row_that_scatters_more_is_told_and_differences_are_judged_by_their_own_seeds() -> None:
    """The paired t test of that row alone: differences 10, -6, 8, -4 have mean 2 and s = sqrt(200 / 3)."""
    quiet = {str(row): [row + 0.1 * ((row * seed) % 3) for seed in range(4)] for row in range(1, 5)}
    table = rows_of({"0": [0.0, 0.0, 0.0, 0.0], **quiet, "wild": [10.0, -6.0, 8.0, -4.0]})
    result = compare(table, "0")
    assert result.noise is not None
    assert result.noise.noisy == ("wild",)
    assert result.noise.residual < 0.2
    wild = difference_of(result, "wild")
    assert (wild.own_seeds, wild.value) == (True, 2.0)
    assert wild.span is not None
    assert wild.span.half == pytest.approx(3.182446 * math.sqrt(200 / 3) / 2, rel=1e-5)
    assert [row.std for row in result.rows][-1] == pytest.approx(math.sqrt(200 / 3))
    assert difference_of(result, "4").own_seeds
    assert difference_of(result, "4").distinguishable
    four = difference_of(result, "4").span  # 4, 4.1, 4.2, 4: mean 4.075, s = sqrt(.0275 / 3)
    assert four is not None
    assert four.half == pytest.approx(3.182446 * math.sqrt(0.0275 / 3) / 2, rel=1e-5)
    assert not difference_of(compare(table, "0", scatter="equal"), "4").distinguishable  # the wild row hides it
    assert difference_of(compare(table, "0", scatter="own"), "4").own_seeds


@pytest.mark.parametrize(
    ("case", "scatter", "least", "most_claims"),
    [
        (Case("equal, a fifth missing", (1,) * 4, 4, missing=0.2), "auto", 0.93, 0.06),
        (Case("seven quiet rows and a wild one", (*(0.5,) * 7, 4), 5), "auto", 0.93, 0.06),
        (Case("one row 4x", (1, 1, 1, 4), 3), "auto", 0.93, 0.06),
        (Case("a wild baseline", (4, *(0.5,) * 6), 3), "auto", 0.93, 0.06),
        (Case("a wild baseline", (4, *(0.5,) * 6), 3), "own", 0.93, 0.06),
        (Case("images that dominate", (1,) * 4, 3, images=2.0), "auto", 0.93, 0.06),
        (Case("images that matter little", (1,) * 4, 3, images=0.3), "auto", 0.93, 0.06),
    ],
)
def test_intervals_hold_and_claims_are_rare_however_rows_scatter(
    case: Case, scatter: Judging, least: float, most_claims: float
) -> None:
    """A small edition of ``benchmarks.bench_statistics``: 300 tables, so each share is known to within 2.5 points."""
    found = rates(case, 300, scatter)
    assert min(found.held) > least - 0.025
    assert max(found.held) < 0.97 + 0.02
    assert found.false_claims < most_claims + 0.025


def test_rows_that_scatter_alike_are_judged_together_and_so_see_more() -> None:
    """Shares of 100 tables. With three seeds most tables cannot show that rows scatter alike, with five most can."""
    found = {way: power(100, way, rows=6, seeds=3, difference=4) for way in ("equal", "auto", "own")}
    assert found["equal"] > 2 * found["own"]
    assert found["auto"] > 1.3 * found["own"]
    assert power(100, "auto", rows=6, seeds=5, difference=3) > 0.7


def test_rows_more_alike_than_most_are_judged_by_one_spread_a_tenth_wider() -> None:
    """Five seeds, residuals of a Latin kind: every row scatters exactly as much as every other."""
    moves = [[2, -1, -1, 0, 0], [-1, 2, -1, 0, 0], [-1, -1, 2, 0, 0]]  # rows and columns sum to nothing
    table = rows_of({name: [10.0 * row + seed + move for seed, move in enumerate(moves[row])]
                     for row, name in enumerate("abc")})  # fmt: skip
    result = compare(table, "a")
    difference = difference_of(result, "b")
    assert (result.widened, difference.own_seeds) == (True, False)
    # squares 3 * 6 over (3 - 1)(5 - 1) = 8 degrees of freedom: s = 1.5; t(.975, 8) = 2.306004
    assert result.noise is not None
    assert result.noise.residual == pytest.approx(1.5)
    assert difference.span is not None
    assert difference.span.half == pytest.approx(2.306004 * 1.1 * 1.5 * math.sqrt(2 / 5), rel=1e-5)
    equal = difference_of(compare(table, "a", scatter="equal"), "b")
    assert equal.span is not None
    assert equal.span.half == pytest.approx(2.306004 * 1.5 * math.sqrt(2 / 5), rel=1e-5)
    assert equal.better == difference.better  # the chance is of runs, not of what a look may miss


def test_a_difference_with_one_seed_in_common_is_judged_by_all_rows() -> None:
    """Of its own it says nothing; asked for own seeds alone, it stays open."""
    wild = {0: 10.0, 1: -6.0, 2: 8.0, 3: -4.0}
    quiet = [Measured(str(row), {seed: row + 0.1 * ((row * seed) % 3) for seed in range(4)}) for row in range(4)]
    table = [*quiet, Measured("wild", wild), Measured("lone", {2: 5.0, 9: 5.0})]
    result = compare(table, "0")
    assert difference_of(result, "1").own_seeds
    assert not difference_of(result, "lone").own_seeds
    assert difference_of(result, "lone").p is not None
    assert difference_of(compare(table, "0", scatter="own"), "lone").p is None


def test_identical_figures_are_no_difference() -> None:
    result = compare(rows_of({"a": [0, 0, 0], "b": [0, 0, 0], "c": [1, 1, 1]}), "a")
    assert difference_of(result, "b").p == 1
    assert not difference_of(result, "b").distinguishable
    assert str(difference_of(result, "b").further_runs) == "beyond"  # no number of equal runs would tell them apart
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
        names = [row.name for row in compare(rows_of(table), "0", scatter="equal").distinguishable]
        found += "5" in names
    assert found > 80


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 2, 3], [9, 8, 7]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1 to 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation([5, 7, 7, 9], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
