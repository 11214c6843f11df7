"""The reader of search spaces, and drawing from a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pytest

from efafnet.tune_spaces.inline import is_range
from efafnet.tune_spaces.reading import available_spaces, load_space, parse_space
from efafnet.tune_spaces.refused import refuse
from efafnet.tune_spaces.space import (
    Choice,
    Range,
    Scalar,
    Space,
    SpaceError,
    grid,
    grid_size,
    parameters,
    suggest,
    walk,
)

SCHEDULES = """\
about: Rate and schedule.
search:
  optimizer.lr: {float: [1e-4, 1e-2], log: true}
  schedule.kind:
    choice:
      multistep:
        schedule.milestones: {choice: [[=0.5*epochs, =0.8*epochs], [=0.6*epochs]]}
        schedule.factor: {float: [0.1, 0.5], step: 0.2}
      cosine: {schedule.floor: {float: [0.0, 0.1]}}
      plain:
  loss.kind: ohkm
start:
  - {optimizer.lr: 1e-3, schedule.kind: cosine, schedule.floor: 0.05}
"""


def read(text: str) -> Space:
    return parse_space(text, "spaces/my.yaml", {"num_joints": 17, "epochs": 20.0, "steps": 95})


class Scripted:
    """Answers a space's questions from a list, and remembers them."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[Any, ...]] = []

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        self.asked.append((name, low, high, step, log))
        return float(self.answers[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        self.asked.append((name, low, high, step, log))
        return int(self.answers[name])

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        self.asked.append((name, tuple(choices)))
        return self.answers[name]


def test_a_file_says_what_is_drawn_and_under_which_option() -> None:
    trial = Scripted(
        **{"optimizer.lr": 0.01, "schedule.kind": "multistep", "schedule.milestones": "[12.0]", "schedule.factor": 0.3}
    )
    settings = suggest(read(SCHEDULES), trial)
    assert settings == {
        "optimizer.lr": 0.01,
        "schedule.kind": "multistep",
        "schedule.milestones": [12.0],
        "schedule.factor": 0.3,
        "loss.kind": "ohkm",
    }
    assert trial.asked == [
        ("optimizer.lr", 0.0001, 0.01, None, True),
        ("schedule.kind", ("multistep", "cosine", "plain")),
        ("schedule.milestones", ("[10.0, 16.0]", "[12.0]")),
        ("schedule.factor", 0.1, 0.5, 0.2, False),
    ]


def test_other_options_bring_other_settings() -> None:
    space = read(SCHEDULES)
    cosine = suggest(space, Scripted(**{"optimizer.lr": 0.001, "schedule.kind": "cosine", "schedule.floor": 0.1}))
    assert cosine == {
        "optimizer.lr": 0.001,
        "schedule.kind": "cosine",
        "schedule.floor": 0.1,
        "loss.kind": "ohkm",
    }
    plain = suggest(space, Scripted(**{"optimizer.lr": 0.001, "schedule.kind": "plain"}))
    assert plain == {"optimizer.lr": 0.001, "schedule.kind": "plain", "loss.kind": "ohkm"}


def test_optuna_draws_from_a_space_and_the_inverse_gives_the_same_trial_back() -> None:
    space = read(SCHEDULES)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(20):
        trial = study.ask()
        settings = suggest(space, trial)
        assert parameters(space, settings) == trial.params
        again = suggest(space, optuna.trial.FixedTrial(trial.params))
        assert again == settings


def test_bounds_may_refer_to_names() -> None:
    space = read("search:\n  loss.hard_joints: {int: [1, num_joints]}\n  schedule.warmup_steps: {int: [0, .1*steps]}\n")
    joints, warmup = (entry.domain for entry in space.entries)
    assert joints == Range(1, 17, integer=True)
    assert warmup == Range(0, 9, integer=True)


def test_names_are_numbers_only_where_a_number_is_meant() -> None:
    """Keys, labels, prose and text stay as they are; ``epochs`` itself can be searched."""
    text = """\
about: steps
search:
  epochs: {choice: [1, 8, =2*epochs]}
  mode: {choice: [epochs, steps]}
  schedule.kind: {choice: {steps: {warm: {int: [0, steps]}}, epochs: }}
start:
  - {epochs: =epochs, mode: steps}
"""
    space = read(text)
    assert space.about == "steps"
    assert [entry.key for entry in space.entries] == ["epochs", "mode", "schedule.kind"]
    epochs, mode, kind = (entry.domain for entry in space.entries)
    assert isinstance(epochs, Choice)
    assert [option.value for option in epochs.options] == [1, 8, 40.0]
    assert isinstance(mode, Choice)
    assert [option.value for option in mode.options] == ["epochs", "steps"]
    assert isinstance(kind, Choice)
    assert [option.value for option in kind.options] == ["steps", "epochs"]
    assert kind.options[0].entries[0].domain == Range(0, 95, integer=True)
    assert space.start == ((7, {"epochs": 20.0, "mode": "steps"}),)


def test_a_log_range_with_a_step_goes_by_that_factor() -> None:
    space = read(
        "search:\n  optimizer.lr: {float: [1e-4, 2e-2], log: true, step: 10}\n  b: {int: [4, 64], log: true, step: 2}\n"
    )
    rate, batch = (entry.domain for entry in space.entries)
    assert isinstance(rate, Range)
    assert rate.lattice() == [1e-4, 1e-3, 1e-2]
    assert isinstance(batch, Range)
    assert batch.lattice() == [4, 8, 16, 32, 64]
    assert grid_size(space) == len(grid(space)) == 15
    settings = suggest(space, optuna.trial.FixedTrial({"optimizer.lr (place)": 2, "b (place)": 3}))
    assert settings == {"optimizer.lr": 1e-2, "b": 32}
    assert isinstance(settings["b"], int)
    assert parameters(space, settings) == {"optimizer.lr (place)": 2, "b (place)": 3}


def test_values_around_one_are_drawn_from_a_normal() -> None:
    """Of a log range of four decades around its middle a quarter is one decade: 68.3 % within, and 95.4 within two are
    all, so .6827 / .9545 of what is drawn lies within one decade of the middle."""
    space = read("search:\n  optimizer.lr: {float: [1e-5, 1e-1], log: true, around: 1e-3}\n")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest(space, study.ask())["optimizer.lr"] for _ in range(400)]
    assert min(drawn) > 1e-5
    assert max(drawn) < 1e-1
    within = sum(1e-4 < rate < 1e-2 for rate in drawn) / 400
    assert abs(within - 0.6827 / 0.9545) < 3 * (0.715 * 0.285 / 400) ** 0.5
    (share,) = parameters(space, {"optimizer.lr": 1e-3}).values()
    assert share == pytest.approx(0.5)
    for rate in (2e-5, 1e-3, 0.05):
        again = suggest(space, optuna.trial.FixedTrial(parameters(space, {"optimizer.lr": rate})))
        assert again["optimizer.lr"] == pytest.approx(rate, rel=1e-9)


def test_a_space_on_the_command_line_is_the_same_as_a_file() -> None:
    words = [
        "optimizer.lr=log(1e-4, 1e-2, around=1e-3)", "loss.hard_joints=int(1, num_joints)",
        "input=choice(256x192, 384x288)", "schedule.factor=float(0.1, 0.5, step=0.2)",
    ]  # fmt: skip
    assert all(map(is_range, words))
    assert not any(map(is_range, ["optimizer.lr=1e-3", "name=log", "a=f(1)"]))
    space = load_space("\n".join(words), {"num_joints": 17})
    assert [(entry.key, entry.line) for entry in space.entries] == [
        ("optimizer.lr", 2), ("loss.hard_joints", 3), ("input", 4), ("schedule.factor", 5),
    ]  # fmt: skip
    assert [entry.domain for entry in space.entries if isinstance(entry.domain, Range)] == [
        Range(1e-4, 1e-2, integer=False, log=True, around=1e-3), Range(1, 17, integer=True),
        Range(0.1, 0.5, integer=False, step=0.2),
    ]  # fmt: skip
    with pytest.raises(SpaceError, match=r"command-line: a=log\(1\): a range is a=log\(low, high\)"):
        load_space("a=log(1)")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("seed", "the luckiest would win"),
        ("data.val", "other data cannot be compared"),
        ("validation.metric", "the same for all of them"),
        ("test.flip_test", "differently tested"),
        ("protocol", "it would change none"),
        ("cost.gpu_hour", "not the run"),
        ("workers", "reserved for it"),
        ("name", "not what is trained"),
        ("max_samples", "equal samples"),
    ],
)
def test_what_would_make_trials_incomparable_is_refused_wherever_it_stands(key: str, reason: str) -> None:
    nested = read(f"search:\n  loss.kind:\n    choice:\n      mse:\n        {key}: {{choice: [1, 2]}}\n      ohkm:\n")
    with pytest.raises(SpaceError, match=rf"my\.yaml:5: {key} must not be set here: .*{reason}"):
        refuse(nested.source, walk(nested.entries), {"max_samples": "trials are compared at equal samples"})
    refuse(nested.source, walk(read("search:\n  seeds: {int: [1, 2]}\n  epochs: {int: [1, 2]}\n").entries))


def test_an_option_may_be_a_list_and_numbers_keep_their_type() -> None:
    space = read("search:\n  seed: {choice: [1, 2]}\n  input: {choice: [256x192, 384x288]}\n  a: {choice: [true, 1]}\n")
    seed, size, mixed = (entry.domain for entry in space.entries)
    assert isinstance(seed, Choice)
    assert [option.label for option in seed.options] == [1, 2]
    assert isinstance(size, Choice)
    assert [option.value for option in size.options] == ["256x192", "384x288"]
    assert isinstance(mixed, Choice)
    assert suggest(space, Scripted(seed=2, input="384x288", a=1)) == {"seed": 2, "input": "384x288", "a": 1}


def test_one_key_with_two_ranges_is_two_parameters_of_the_study() -> None:
    text = """\
search:
  schedule.kind:
    choice:
      cosine: {optimizer.lr: {float: [1e-4, 1e-3]}, seed: {int: [0, 3]}}
      one_cycle: {optimizer.lr: {float: [1e-3, 1e-2]}, seed: {int: [0, 3]}}
      multistep: {optimizer.lr: {float: [1e-4, 1e-3]}}
"""
    names = [entry.name for entry in read(text).searched]
    assert names == [
        "schedule.kind",
        "optimizer.lr",
        "seed",
        "optimizer.lr[schedule.kind=one_cycle]",
        "seed",
        "optimizer.lr",
    ]


def test_a_grid_is_every_combination_and_only_those_that_exist() -> None:
    text = """\
search:
  loss.hard_joints: {int: [6, 8]}
  schedule.kind: {choice: {multistep: {schedule.factor: {float: [0.1, 0.3], step: 0.1}}, cosine: {}}}
  loss.kind: ohkm
"""
    points = grid(read(text))
    assert len(points) == grid_size(read(text)) == 3 * (3 + 1)
    assert points[0] == {
        "loss.hard_joints": 6,
        "schedule.kind": "multistep",
        "schedule.factor": 0.1,
        "loss.kind": "ohkm",
    }
    assert points[-1] == {"loss.hard_joints": 8, "schedule.kind": "cosine", "loss.kind": "ohkm"}
    assert len({str(point) for point in points}) == 12


def test_a_continuous_range_has_no_grid() -> None:
    assert grid_size(read(SCHEDULES)) is None
    with pytest.raises(SpaceError, match=r"my\.yaml:3: a grid needs every value of optimizer\.lr.*add a step"):
        grid(read(SCHEDULES))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss.hard_joints": 3}, "loss.hard_joints is not searched here"),
        ({"optimizer.lr": 0.5}, r"optimizer\.lr=0\.5 lies outside \[0\.0001, 0\.01\]"),
        ({"schedule.kind": "step"}, "schedule.kind=step is not among"),
        ({"schedule.kind": "cosine", "schedule.factor": 0.1}, "schedule.factor is not searched here"),
        ({"loss.kind": "mse"}, "fixes it at ohkm"),
    ],
)
def test_settings_outside_the_space_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters(read(SCHEDULES), settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"my\.yaml:1: a search space is a mapping"),
        ("about: x\n", r"my\.yaml:1: the section search is missing"),
        ("search: {}\n", r"my\.yaml:1: nothing is searched"),
        ("search:\n  a: 1\n", r"my\.yaml:1: nothing is searched"),
        ("search:\n  a: {int: [1, 2]}\nfoo: 1\n", r"my\.yaml:3: unknown section 'foo'"),
        ("search:\n  a: {int: [1, 2]\n", r"my\.yaml:3: not YAML"),
        ("search:\n  a: {int: [1, 2]}\n  a: {int: [1, 3]}\n", r"my\.yaml:3: a stands here twice \(first in line 2\)"),
        ("search:\n  a: {low: 1, high: 2}\n", r"my\.yaml:2: a: expected one of .*got the keys low, high"),
        ("search:\n  a: {int: [1, 2], choice: [3]}\n", r"my\.yaml:2: a: expected one of"),
        ("search:\n  a: {int: [1, 2], base: 3}\n", r"my\.yaml:2: a: unknown word 'base'; allowed here: int, log, step"),
        ("search:\n  a: {int: 3}\n", r"my\.yaml:2: a: a range is \[low, high\]; got 3"),
        ("search:\n  a: {int: [1, 2.5]}\n", r"my\.yaml:2: a: expected an integer; got 2\.5"),
        ("search:\n  a: {float: [1, .nan]}\n", r"my\.yaml:2: a: expected a number; got nan"),
        ("search:\n  a: {float: [1, true]}\n", r"my\.yaml:2: a: expected a number; got True"),
        (
            "search:\n  a: {int: [1, joints]}\n",
            r"a: 'joints' is neither a number nor made of a known name \(num_joints",
        ),
        ("search:\n  a: {int: [4, 2]}\n", r"my\.yaml:2: a: the range \[4, 2\] is empty"),
        ("search:\n  a: {float: [0, 2], log: true}\n", r"my\.yaml:2: a: a log range starts above 0"),
        ("search:\n  a: {float: [1, 2], log: 10}\n", r"my\.yaml:2: a: log is true or false; got 10"),
        ("search:\n  a: {float: [1, 2], step: 0}\n", r"my\.yaml:2: a: step must be positive"),
        ("search:\n  a: {float: [1, 2], log: true, step: 1}\n", r"my\.yaml:2: a: a log range's step is the factor"),
        ("search:\n  a: {float: [1, 2], around: 3}\n", r"my\.yaml:2: a: around lies between the bounds"),
        ("search:\n  a: {int: [1, 2]}\n  b: 0.5*epochs\n", r"my\.yaml:3: '0\.5\*epochs' is text here"),
        ("search:\n  a: {int: [1, 2]}\n  b: =joints\n", r"my\.yaml:3: '=joints' refers to no known name"),
        ("search:\n  a: {choice: []}\n", r"my\.yaml:2: a: a choice needs different options"),
        ("search:\n  a: {choice: [x, x]}\n", r"my\.yaml:2: a: a choice needs different options"),
        ("search:\n  a: {choice: 3}\n", r"my\.yaml:2: a: choice takes a list of values"),
        (
            "search:\n  a:\n    choice:\n      x: {a: 1}\n      y:\n",
            r"my\.yaml:4: a is set here and outside this option",
        ),
        (
            "search:\n  a: {choice: {x: {c: 1}, y: {}}}\n  b:\n    choice:\n      u: {c: 2}\n      v: {}\n",
            r"my\.yaml:5: c is set by two choices at once",
        ),
        ("search:\n  a: {int: [1, 2]}\nstart: {a: 1}\n", r"my\.yaml:3: start is a list of settings"),
        ("search:\n  a: {int: [1, 2]}\nstart:\n  - 3\n", r"my\.yaml:4: an item of start is a mapping"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        read(text)


def test_an_unknown_space_lists_the_known_ones() -> None:
    with pytest.raises(SpaceError, match=r"no search space 'ohkn'; there are .*ohkm"):
        load_space("ohkn")
    with pytest.raises(SpaceError, match=r"nowhere\.yaml cannot be read"):
        load_space("nowhere.yaml")
    assert {"ohkm", "lr_schedule", "input_size", "all", "demo"} <= set(available_spaces())
