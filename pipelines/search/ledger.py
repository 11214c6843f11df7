"""The search's only memory: an Optuna study in sqlite, written at every event, from which a killed search continues.

Ray Tune's own snapshots are seconds old when a driver dies and would lose or double trials; a row in the study is
there or it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from efafnet.pipelines.search.earlier import COST_UNIT, TERMS, Terms, fits, study_identity
from efafnet.pipelines.search.limits import DRAWS, INFEASIBLE, Limits, judge_again
from efafnet.pipelines.search.pareto import COST, both_objectives
from efafnet.pipelines.search.samplers import LEARN_ALONE, as_judged, make_sampler
from efafnet.pipelines.search.stopping import SearchState
from efafnet.pipelines.search.study_db import StudyFileError, check_beside, open_storage, reading
from efafnet.pipelines.search.untried import NEVER_TWICE, draw_untried
from efafnet.tune_spaces.space import Settings, Space, grid_size, parameters, suggest

State = Literal["complete", "pruned", "failed"]
IMPORTED = "imported_from"
"""Attribute of trials that were taken over from another study: which study, and which trial of it."""
RETRY_OF = "retry_of"
"""Attribute of a trial that tries a failed one again: that one's number."""
PAUSED = "set_aside"
"""Attribute of a trial: whether it is paused, and may go on. As studies have it that were begun long ago."""
DRIVER = "driver"
"""Attribute of a trial of a shared study: which command runs it."""
IDENTITY = "identity"
"""Attribute of a shared study: digest of what makes it the search it is."""


@dataclass(frozen=True)
class Assignment:
    """One trial to run: its number in the study, its settings, and what an earlier, interrupted attempt left."""

    number: int
    settings: Settings
    attempt: int
    """1 for the first attempt; more when the search was killed while the trial ran."""
    attributes: Mapping[str, Any]
    """What was noted about the trial before, for example its MLflow run."""


@dataclass(frozen=True)
class Shared:
    """A study that is not kept in the search's directory, so that several commands may search together."""

    storage: str
    """As ``search.storage`` names it."""
    driver: str
    """What tells this command from the others, whenever it is given again."""
    identity: str
    """Digest of what makes the search the search it is; the same for all."""


def _finite(curve: Mapping[int, float]) -> dict[int, float]:
    return {samples: value for samples, value in curve.items() if math.isfinite(value)}


def _all_finite(trial: FrozenTrial) -> bool:
    return all(map(math.isfinite, (*trial.values, *trial.intermediate_values.values())))


class Ledger:
    """Hands out trials and records what became of them. Every method is one committed write or none.

    Args:
        path: the study's sqlite file.
        name: the study's name.
        space: what is searched.
        trials: how many trials the search has in all.
        sampler: how values are drawn.
        seed: seed of the draws.
        startup: trials drawn at random before the sampler learns.
        weighed: whether the sampler weighs the figure against the trials' cost (``pareto``).
        waits: whether trials may be paused: the sampler then sees those that wait as stopped and not as running.
        judged_at: samples at which every trial waits; the sampler then learns from the figures there.
        limits: what networks may cost; None for no limits.
        shared: where the study is kept, if not in ``path``.

    Raises:
        ValueError: the study cannot be used, is another search's, or cannot be shared in this way.
        OSError: what keeps it does not answer.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        space: Space,
        *,
        trials: int,
        sampler: str,
        seed: int,
        startup: int,
        weighed: bool = False,
        waits: bool = False,
        judged_at: int | None = None,
        limits: Limits | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.space, self.trials, self._sampler, self._seed, self._startup = space, trials, sampler, seed, startup
        self._weighed, self._waits, self._judged_at = weighed, waits, judged_at
        self._limits, self._shared = limits, shared
        self._finite = grid_size(space) is not None
        self.nothing_left = ""
        """Why nothing more is drawn: all was tried, or is above the limits. Nothing while there is more."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        place = path, shared.storage if shared else None
        kept = open_storage(*place)
        with reading(*place):
            self.study = optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)
            self._live: dict[int, Trial] = {}
            running = [trial for trial in self.own() if trial.state == TrialState.RUNNING and self._is_mine(trial)]
            self._paused = {trial.number for trial in running if trial.user_attrs.get(PAUSED)}
            self._interrupted = [trial for trial in running if trial.number not in self._paused]
            self.curves = {trial.number: _finite(trial.intermediate_values) for trial in self.own()}
        if shared is not None:
            self._check_shared(path, shared)

    def _check_shared(self, path: Path, shared: Shared) -> None:
        if not self.study.get_trials(deepcopy=False):
            check_beside(path, f"search.storage={shared.storage} holds no trials of {self.study.study_name}")
        known = self.study.user_attrs.get(IDENTITY)
        if known is None:
            self.study.set_user_attr(IDENTITY, shared.identity)
        elif known != shared.identity:
            raise StudyFileError(
                f"search.storage={shared.storage} holds another search named {self.study.study_name}, with other "
                "settings or data; choose another name=…"
            )
        if self._waits and not all(map(self._is_mine, self.own())):
            raise StudyFileError(
                f"search.storage={shared.storage}: another command searches in this study, and trials that wait go on "
                "only where their checkpoints are; share it with stop=asha, median or none, and promotes=false"
            )

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return self._shared is None or trial.user_attrs.get(DRIVER) == self._shared.driver

    # ---- what there is

    def own(self) -> list[FrozenTrial]:
        """The trials of this search, in order; what was not handed out yet, or is above a limit, is not among them."""
        return [trial for trial in self._asked() if INFEASIBLE not in trial.user_attrs]

    def infeasible(self) -> int:
        """How many trials were drawn above a limit, and never trained."""
        return sum(INFEASIBLE in trial.user_attrs for trial in self._asked())

    def _asked(self) -> list[FrozenTrial]:
        return _drawn(self.study.get_trials(deepcopy=False))

    def counted(self) -> list[FrozenTrial]:
        """The trials of this search that count towards ``trials``: all but failed ones that are tried again."""
        trials = self.study.get_trials(deepcopy=False)  # once: the study is read from its file each time
        again = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        return [t for t in _drawn(trials) if INFEASIBLE not in t.user_attrs and t.number not in again]

    def over(self) -> int:
        """How many trials that count have ended."""
        return sum(trial.state.is_finished() for trial in self.counted())

    def remaining(self) -> int:
        """Trials that still have to run to their end, interrupted ones included."""
        return max(0, self.trials - self.over())

    def best(self) -> FrozenTrial | None:
        """The complete trial with the largest figure."""
        complete = [trial for trial in self.own() if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: -math.inf if trial.value is None else trial.value, default=None)

    def any_success(self) -> bool:
        """Whether any trial has shown a figure: then its failures are its settings', and not the machine's."""
        return any(self.curves.values())

    # ---- before the search

    def enqueue_grid(self, points: Sequence[Settings]) -> None:
        """Queue combinations of the space, each once."""
        for settings in points:
            self.study.enqueue_trial(parameters(self.space, settings), skip_if_exists=True)

    def enqueue_start(self) -> None:
        """Queue the space's start points, once."""
        for _, settings in self.space.start:
            self.study.enqueue_trial(parameters(self.space, settings), skip_if_exists=True)

    def retry_failed(self) -> int:
        """Queue the settings of every failed trial once more; returns how many.

        A trial that has ended is never opened again: the retry is a trial of its own and takes the failed one's place.
        """
        failed = [trial for trial in self.counted() if trial.state == TrialState.FAIL]
        for trial in failed:
            self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
        return len(failed)

    def learn_from(self, earlier: optuna.Study, cost: Callable[[FrozenTrial], float | None] | None = None) -> int:
        """Take over the finished trials of an earlier study that fit this space; returns how many.

        Trials that searched the same keys count, whatever else their study fixed. ``cost`` gives what a trial's
        network costs, where this search weighs it.
        """
        known = {t.user_attrs[IMPORTED] for t in self.study.get_trials(deepcopy=False) if IMPORTED in t.user_attrs}
        origin, taken = study_identity(earlier), 0
        for trial in earlier.get_trials(deepcopy=True, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            mark = f"{origin}#{trial.number}"
            of_its_own = IMPORTED not in trial.user_attrs
            if of_its_own and mark not in known and trial.values and _all_finite(trial) and fits(self.space, trial):
                trial.user_attrs[IMPORTED] = mark
                trial.user_attrs.pop(RETRY_OF, None)
                trial.user_attrs.pop(COST, None)
                if cost is not None and (told := cost(trial)) is not None:
                    trial.user_attrs[COST] = told
                judge_again(trial, self._limits)
                self.study.add_trial(trial)
                taken += 1
        return taken

    def set_terms(self, terms: Terms, cost_unit: str) -> None:
        """Write down what the figures and costs of this search are, for searches that learn from it."""
        self.study.set_user_attr(TERMS, asdict(terms))
        self.study.set_user_attr(COST_UNIT, cost_unit)

    # ---- during the search

    def next(self, *, begin: bool = True) -> Assignment | None:
        """The next trial: first those that were interrupted, then, with ``begin``, new ones; None when all have been
        handed out."""
        while self._interrupted:
            if assignment := self._hand_out(self._trial(self._interrupted.pop(0))):
                return assignment
        if not begin or self.exhausted():
            return None
        for _ in range(DRAWS):
            self._set_sampler(asked=len(self._asked()))
            if not self._enqueue_drawn():
                self.nothing_left = f"all settings of {self.space.source} that could be drawn have been tried"
                return None
            if assignment := self._hand_out(self.study.ask()):
                return assignment
        assert self._limits is not None, "without limits every trial is handed out"
        self.nothing_left = self._limits.none_found(self.space.source, f"{DRAWS} settings drawn in a row")
        return None

    def exhausted(self) -> bool:
        """Whether every trial has been handed out, or there is none within the limits."""
        return not self._interrupted and (bool(self.nothing_left) or len(self.counted()) >= self.trials)

    def _enqueue_drawn(self) -> bool:
        """Queue what the sampler draws on a copy: one that shows it more than the study can, or on which it can be
        asked again where settings were tried before. Nothing, where neither is needed or something is queued.

        Returns:
            Whether there is anything to try.
        """
        trials = self.study.get_trials(deepcopy=False)
        on_a_copy = (self._weighed or self._waits) and self._sampler not in LEARN_ALONE
        never_twice = self._finite and self._sampler in NEVER_TWICE
        if not (on_a_copy or never_twice) or any(trial.state == TrialState.WAITING for trial in trials):
            return True
        copy = both_objectives(trials) if self._weighed else as_judged(trials, self._paused, self._judged_at)
        copy.sampler = self.study.sampler
        drawn = draw_untried(self.space, copy, self._sampler, [t.params for t in self._asked()] if never_twice else ())
        if drawn is not None:
            self.study.enqueue_trial(drawn)
        return drawn is not None

    def _trial(self, frozen: FrozenTrial) -> Trial:
        # With the sampler it had: the kill may have come before it drew anything.
        self._set_sampler(asked=sum(trial.number < frozen.number for trial in self._asked()))
        return Trial(self.study, frozen._trial_id)

    def _set_sampler(self, asked: int) -> None:
        self.study.sampler = make_sampler(self._sampler, self._seed, asked, self._startup)

    def _hand_out(self, trial: Trial) -> Assignment | None:
        """Give a trial its settings; None where its network is above a limit: it is closed then."""
        # Values that an interrupted attempt had drawn are in the study and come out the same.
        settings = suggest(self.space, trial)
        attempt = int(trial.user_attrs.get("attempts", 0)) + 1
        if attempt == 1 and self._shared is not None:
            trial.set_user_attr(DRIVER, self._shared.driver)
        if attempt == 1 and self._limits is not None and (above := self._limits.judge(trial, settings)):
            self._close_above(trial, above)
            return None
        trial.set_user_attr("settings", settings)
        trial.set_user_attr("attempts", attempt)
        self._live[trial.number] = trial
        self.curves.setdefault(trial.number, {})
        return Assignment(trial.number, settings, attempt, dict(trial.user_attrs))

    def _close_above(self, trial: Trial, above: str) -> None:
        trial.set_user_attr(INFEASIBLE, above)
        # Stopped and not failed: of failed trials samplers take no note.
        self.study.tell(trial, state=TrialState.PRUNED)

    def note(self, number: int, key: str, value: Any) -> None:
        """Remember something about a trial that runs."""
        self._live[number].set_user_attr(key, value)

    def report(self, number: int, samples: int, value: float) -> bool:
        """Record a validation figure; returns whether it is a new one. One that is there already stays: a resumed trial
        repeats its last epochs.

        Raises:
            ValueError: the figure is not a finite number, which no study takes.
        """
        if not math.isfinite(value):
            raise ValueError(f"the validation figure after {samples} samples is {value}")
        if samples in self.curves[number]:
            return False
        self._live[number].report(value, samples)
        self.curves[number][samples] = value
        if self._shared is not None:  # others' figures, to judge this one by
            self.curves |= {t.number: _finite(t.intermediate_values) for t in self.own() if not self._is_mine(t)}
        return True

    def pause(self, number: int) -> None:
        """Pause a trial where it is."""
        self._live.pop(number).set_user_attr(PAUSED, True)
        self._paused.add(number)

    def resume(self, number: int) -> Assignment:
        """Hand out a trial that was paused."""
        trial = self._trial(self.study.get_trials(deepcopy=False)[number])
        trial.set_user_attr(PAUSED, False)
        self._paused.remove(number)
        assignment = self._hand_out(trial)
        assert assignment is not None, "a trial that waits had been handed out"
        return assignment

    def close_paused(self) -> list[int]:
        """Close the trials that were paused, as stopped; returns their numbers."""
        closed = sorted(self._paused)
        for number in closed:
            self._live[number] = self._trial(self.study.get_trials(deepcopy=False)[number])
            self._live[number].set_user_attr(PAUSED, False)
            self.finish(number, "pruned")
        self._paused.clear()
        return closed

    def state(self, *, exhausted: bool) -> SearchState:
        """Where the trials stand; ``exhausted`` where none is to be begun though there are more."""
        ended = self.own()
        return SearchState(
            curves=self.curves,
            paused=frozenset(self._paused),
            running=frozenset(self._live) | {trial.number for trial in self._interrupted},
            complete=frozenset(trial.number for trial in ended if trial.state == TrialState.COMPLETE),
            failed=frozenset(trial.number for trial in ended if trial.state == TrialState.FAIL),
            exhausted=exhausted or self.exhausted(),
        )

    def without_progress(self) -> int:
        """How many trials have shown a figure and ended since the one that showed the best figure of all."""
        ended = [trial for trial in self.own() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
                 and trial.values]  # fmt: skip
        ended.sort(key=lambda trial: (trial.datetime_complete or datetime.max, trial.number))
        figures = [max(trial.value or -math.inf, *_finite(trial.intermediate_values).values()) for trial in ended]
        return len(figures) - 1 - figures.index(max(figures)) if figures else 0

    def finish(self, number: int, state: State, reason: str = "") -> tuple[State, str]:
        """Close a trial, whose last figure is its value if it is complete; returns how it was closed, and why."""
        trial, curve = self._live.pop(number), self.curves[number]
        if state == "complete" and not curve:
            state, reason = "failed", "it ended without a single validation figure"
        if reason:
            trial.set_user_attr("reason", reason)
        value = curve[max(curve)] if state == "complete" else None
        self.study.tell(trial, value, state=_STATES[state])
        return state, reason

    def live(self) -> list[int]:
        """Numbers of the trials that were handed out and not closed."""
        return sorted(self._live)


def _drawn(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that this search has drawn: what waits is not, and what another search found."""
    return [t for t in trials if t.state != TrialState.WAITING and IMPORTED not in t.user_attrs]


_STATES: dict[State, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
