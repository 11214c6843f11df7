"""A study's table as people read it: on the terminal, in Markdown, in the report, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from efafnet.pipelines.study.config import Plan
from efafnet.pipelines.study.statistics import (
    WIDENED,
    Comparison,
    Difference,
    Measured,
    RowResult,
    rank_correlation,
)
from efafnet.pipelines.study.uncertainty import MOST_RUNS, RANGE, Chance, Runs, Span
from efafnet.platform import console

SHEET_FILE = "study/result.json"
"""Where a study's MLflow run keeps its result among its artifacts."""

_SUMMARY = ("row", "paper", "measured", "±", "diff.", "told apart")


@dataclass(frozen=True)
class Sheet:
    """A table with what must be read beside it."""

    title: str
    columns: tuple[tuple[str, str], ...]
    """Heading and explanation of each column."""
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    """Sentences under the table."""

    def show(self) -> None:
        """Print it."""
        console.table([name for name, _ in self.columns], self.rows, title=self.title)
        for text in self.texts:
            console.say(text)

    def markdown(self) -> str:
        """The same as Markdown."""
        lines = [f"## {self.title}", "", *self._table(range(len(self.columns)))]
        return "\n".join([*lines, "", *(f"- {text}" for text in self.texts)]) + "\n"

    def summary(self) -> str:
        """Which row is ahead by how much, and whether that is more than noise, as Markdown for a narrow page."""
        names = [name for name, _ in self.columns]
        chosen = [i for i, name in enumerate(names) if name in _SUMMARY or name.endswith(" of diff.")]
        return "\n".join(self._table(chosen))

    def _table(self, chosen: Sequence[int]) -> list[str]:
        heads = [self.columns[index][0] for index in chosen]
        return [_line(heads), _line(["---"] * len(heads)), *(_line([row[i] for i in chosen]) for row in self.rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def sheet_of(
    title: str, plans: Sequence[Plan], found: Comparison, circumstances: Sequence[str], failures: Mapping[str, str]
) -> Sheet:
    """Lay out a comparison.

    Args:
        title: heading.
        plans: all rows, those that do not run included.
        found: what was measured.
        circumstances: on what it was measured.
        failures: why runs failed, by a name that says which.
    """
    results = {row.name: row for row in found.rows}
    base = next((plan.row.paper for plan in plans if plan.row.name == found.baseline), None)
    rows = [_row(plan, results.get(plan.row.name), base, found.baseline) for plan in plans]
    columns = list(_columns(found))
    if all(plan.row.paper is None for plan in plans):
        rows = [[cell for cell, name in zip(row, columns, strict=True) if "paper" not in name[0]] for row in rows]
        columns = [column for column in columns if "paper" not in column[0]]
    texts = [*circumstances, *_noise(found), *verdicts(found), *_order(plans, results)]
    texts += [f"{name} failed: {reason}" for name, reason in failures.items()]
    texts += [f"{plan.row.name}: not run, {plan.why}" for plan in plans if plan.why]
    texts += [f"{plan.row.name}: {plan.row.note}" for plan in plans if plan.row.note]
    return Sheet(title, tuple(columns), tuple(tuple(row) for row in rows), tuple(texts))


def _columns(found: Comparison) -> tuple[tuple[str, str], ...]:
    mass = f"{100 * found.confidence:g} %"
    return (
        ("row", "what was trained"),
        ("paper", "the paper's figure, percent"),
        ("measured", "mean over seeds, percent"),
        ("±", f"half the {mass} interval of that mean by seeds, on these validation images"),
        ("sd", "standard deviation of the row's own runs"),
        ("runs", "runs that ended"),
        ("paper diff.", "the paper's figure minus its figure of the baseline"),
        ("diff.", f"measured, minus {found.baseline}, seed by seed"),
        (f"{mass} of diff.", "interval of the difference by seeds and images together, this difference alone"),
        ("p", "probability of so large a difference between equal settings, by Holm's correction for the whole table"),
        (
            "told apart",
            f"whether p is below {1 - found.confidence:.2g}; by own seeds: not all rows' spread, but the seeds of "
            "the row and the baseline alone judge it",
        ),
        (
            "better",
            f"probability that a run of the row beats the baseline's with the same seed, and its {mass} interval; .5 "
            "for no difference, .75 for one that matters (Bouthillier et al. 2021)",
        ),
        (
            "more seeds",
            "further seeds after which the true difference would stand out every second time, between the largest and "
            f"the smallest that it may be ({100 * RANGE:g} %); or more: it may be nothing, or the draw of the "
            f"validation images hides it however many there are; beyond: more than {MOST_RUNS}",
        ),
        ("M params", "parameters in millions, without auxiliary heads; in brackets the paper's"),
        ("GMAC", "multiply-adds of one crop in 10^9"),
    )


def _row(plan: Plan, result: RowResult | None, paper_base: float | None, baseline: str) -> list[str]:
    paper = plan.row.paper
    gain = paper - paper_base if paper is not None and paper_base is not None else None
    known = f" ({plan.row.paper_params_m:g})" if plan.row.paper_params_m is not None else ""
    cost = ["", ""] if plan.cost is None else [f"{plan.cost.params_m:.3g}{known}", f"{plan.cost.gmac:.3g}"]
    if result is None:
        measured = ["not run" if plan.why else "failed", "", "", "0"]
    else:
        spread = "?" if result.std is None else f"{result.std:.2f}"
        half = f"{result.span.half:.1f}" if result.span else "?"
        measured = [f"{result.mean:.1f}", half, spread, str(result.runs)]
    is_base = plan.row.name == baseline
    difference = result.difference if result else None
    return [
        plan.row.name,
        "" if paper is None else f"{paper:.1f}",
        *measured,
        "" if gain is None or is_base else f"{gain:+.1f}",
        *(["baseline", *[""] * 5] if is_base else _judgement(difference)),
        *cost,
    ]


def _judgement(difference: Difference | None) -> list[str]:
    if difference is None:
        return [""] * 6
    if difference.p_holm is None:
        return [f"{difference.value:+.1f}", *["?"] * 5]
    p = f"{difference.p_holm:.3f}" if difference.p_holm >= 0.001 else "< 0.001"
    apart = ("yes" if difference.distinguishable else "no") + ", by own seeds" * difference.own_seeds
    more = "" if difference.further_runs is None else str(difference.further_runs)
    return [f"{difference.value:+.1f}", ends(difference.span), p, apart, _chance(difference.better), more]


def _chance(better: Chance | None) -> str:
    return "?" if better is None else f"{better.value:.2f} ({better.span.low:.2f} to {better.span.high:.2f})"


def ends(span: Span | None) -> str:
    """An interval as text."""
    return "?" if span is None else f"{span.low:+.1f} to {span.high:+.1f}"


def _noise(found: Comparison) -> list[str]:
    noise = found.noise
    if noise is None:
        return ["one run per row: nothing here tells a difference from luck; give seeds=3 or more"]
    text = f"seeds of one row lie apart by {noise.within:.2f} points (standard deviation, {noise.within_df} df)"
    if noise.residual_df == 0:
        return [f"{text}; rows share too few seeds for a spread of their differences: give the same seeds to all"]
    texts = [
        f"{text}; the difference of two single runs with the same seed scatters by {noise.of_pair:.2f} "
        f"({noise.residual_df} df, pooled over the rows)"
    ]
    return [*texts, *_unlike(found), *_resolved(found)]


def _unlike(found: Comparison) -> list[str]:
    """Say whose scatter judges the differences, and which rows do not scatter as the others do."""
    noisy = found.noise.noisy if found.noise is not None else ()
    judged = [row for row in found.rows if row.difference is not None and row.difference.p is not None]
    alone = [row.name for row in judged if row.difference is not None and not row.difference.own_seeds]
    texts = [f"scatter more than the others, and are left out of the pool: {', '.join(noisy)}"] if noisy else []
    if found.widened:
        texts.append(
            f"rows scatter alike as far as seeds show: one spread, widened by {WIDENED - 1:.0%}, judges them all"
        )
    elif found.scatter == "auto" and len(alone) < len(judged):
        texts.append(
            "seeds do not show that rows scatter alike: each difference is judged by those of its two rows alone "
            "(scatter=equal supposes that they do, and sees more; five seeds show it better than three)"
        )
        if alone:
            texts.append(f"with fewer than two seeds in common, judged by the spread of all rows: {', '.join(alone)}")
    return texts


def _resolved(found: Comparison) -> list[str]:
    if found.resolved is None:
        return []
    points, seeds, span = found.resolved
    middle = f"more than {MOST_RUNS}" if seeds is None else str(seeds)
    return [
        f"a true difference of {points:g} points would stand out in this table every second time with {middle} seeds "
        f"in all ({span}, since the spread is itself known from a few runs)"
    ]


def verdicts(found: Comparison) -> list[str]:
    """Say which differences are more than luck."""
    if all(row.name != found.baseline for row in found.rows):
        return [f"no run of the baseline {found.baseline} ended: there is nothing to compare with"]
    judged = [row for row in found.rows if row.difference is not None and row.difference.p_holm is not None]
    if not judged:
        return []
    what = f"at {100 * found.confidence:g} % (Holm over {len(judged)} difference{'s'[: len(judged) != 1]})"
    told = [f"{row.name} ({row.difference.value:+.1f})" for row in found.distinguishable if row.difference]
    open_ = [row.name for row in judged if row.difference and not row.difference.distinguishable]
    texts = [f"told apart from {found.baseline} {what}: {', '.join(told) or 'none'}"]
    return [*texts, f"NOT told apart from {found.baseline}: {', '.join(open_)}"] if open_ else texts


def _order(plans: Sequence[Plan], results: Mapping[str, RowResult]) -> list[str]:
    both = [(p.row.paper, results[p.row.name].mean) for p in plans if p.row.paper and p.row.name in results]
    correlation = rank_correlation([one for one, _ in both], [other for _, other in both])
    if correlation is None:
        return []
    return [f"rank correlation of the measured column with the paper's over {len(both)} rows: {correlation:+.2f}"]


def to_json(
    plans: Sequence[Plan], measured: Sequence[Measured], found: Comparison, sheet: Sheet, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything at full precision, every run's figure too; figures in percent."""
    figures = {row.name: {str(seed): value for seed, value in row.by_seed.items()} for row in measured}
    results = {row.name: row for row in found.rows}
    rows = []
    for plan in plans:
        result = results.get(plan.row.name)
        row: dict[str, Any] = {"name": plan.row.name, "key": plan.row.key, "paper": plan.row.paper}
        row |= {"settings": plan.row.settings, "network": plan.row.network, "note": plan.row.note, "not_run": plan.why}
        row["figures"] = figures.get(plan.row.name, {})
        if plan.cost is not None:
            row |= {"params_m": plan.cost.params_m, "gmac": plan.cost.gmac}
        rows.append({**row, **({} if result is None else asdict(result))})
    return {
        **facts,
        "unit": "percent",
        "baseline": found.baseline,
        "confidence": found.confidence,
        "noise": None if found.noise is None else asdict(found.noise),
        "resolved": None if found.resolved is None else _resolved_json(*found.resolved),
        "rows": rows,
        "sheet": asdict(sheet),
    }


def _resolved_json(points: float, seeds: int | None, span: Runs) -> dict[str, Any]:
    return {"points": points, "seeds": seeds, "range": asdict(span)}
