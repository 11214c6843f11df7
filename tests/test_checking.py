"""The check of a search space: its corners are tried before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from efafnet.models.settings import Settings
from efafnet.platform.configuration import resolve
from efafnet.tune_spaces.checking import check_space
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import (
    Space,
    SpaceError,
)


def read(text: str) -> Space:
    return parse_space(text, "spaces/my.yaml", {"num_joints": 17, "epochs": 20.0, "steps": 95})


class Loss(Settings):
    kind: str = "mse"
    hard_joints: int = 8

    def model_post_init(self, _: Any) -> None:
        if self.hard_joints > 17:
            raise ValueError(f"hard_joints must be at most 17; got {self.hard_joints}")


class Config(Settings):
    batch_size: int = 32
    workers: int = 1
    loss: Loss = Loss()

    def model_post_init(self, _: Any) -> None:
        if self.batch_size % self.workers or self.batch_size == 48:
            raise ValueError(f"batch_size {self.batch_size} does not suit {self.workers} workers")


def build(settings: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        group, _, leaf = key.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return resolve(Config, tree)


def test_a_good_space_passes_and_its_corners_were_tried() -> None:
    seen: list[dict[str, Any]] = []

    def remember(settings: dict[str, Any]) -> Config:
        seen.append(settings)
        return build(settings)

    check_space(read("search:\n  loss.hard_joints: {int: [1, 17]}\n  workers: {choice: [1, 2]}\n"), remember)
    corners = [{"loss.hard_joints": r, "workers": w} for r in (1, 17) for w in (1, 2)]
    assert all(corner in seen for corner in corners)


def test_a_key_the_configuration_does_not_know_is_refused_with_line_and_nearest_key() -> None:
    space = read("search:\n  workers: {choice: [1, 2]}\n  loss.hard_joint: {int: [1, 17]}\n")
    with pytest.raises(
        SpaceError, match=r"my\.yaml:3: loss\.hard_joint=1 is refused.*did you mean 'loss\.hard_joints'"
    ):
        check_space(space, build)


def test_a_value_the_configuration_refuses_is_named() -> None:
    with pytest.raises(SpaceError, match=r"my\.yaml:2: loss\.hard_joints=18 is refused by .*at most 17; got 18"):
        check_space(read("search:\n  loss.hard_joints: {int: [1, 20]}\n  workers: {choice: [1, 2]}\n"), build)
    with pytest.raises(SpaceError, match=r"my\.yaml:2: workers=two is refused"):
        check_space(read("search:\n  workers: {choice: [1, two]}\n"), build)


def test_a_value_in_the_middle_of_a_short_range_is_tried_too() -> None:
    with pytest.raises(SpaceError, match=r"my\.yaml:2: batch_size=48 is refused"):
        check_space(read("search:\n  batch_size: {int: [32, 64], step: 16}\n"), build)


def test_a_combination_that_is_refused_names_the_keys_that_clash_and_no_others() -> None:
    text = "search:\n  loss.hard_joints: {int: [1, 8]}\n  batch_size: {choice: [32, 33]}\n  workers: {choice: [1, 2]}\n"
    message = r"my\.yaml:4: batch_size=33, workers=2 is refused together by the configuration"
    with pytest.raises(SpaceError, match=message):
        check_space(read(text), build)


def test_settings_inside_an_option_are_tried_with_that_option() -> None:
    text = """\
search:
  loss.kind:
    choice:
      mse:
        batch_size: 32
      ohkm:
        loss.hard_joints: {int: [1, 18]}
"""
    with pytest.raises(SpaceError, match=r"my\.yaml:7: loss\.hard_joints=18 is refused"):
        check_space(read(text), build)


def test_start_points_must_lie_in_the_space_and_be_possible() -> None:
    body = "search:\n  batch_size: {choice: [32, 33]}\n  workers: 1\nstart:\n  - {batch_size: 32}\n"
    assert check_space(read(body), build) > 0
    with pytest.raises(SpaceError, match=r"my\.yaml:6: a start point does not fit: batch_size=31 is not among"):
        check_space(read(body + "  - {batch_size: 31}\n"), build)


def test_a_large_space_is_sampled_instead_of_enumerated() -> None:
    lines = "".join(f"  key{i}: {{int: [0, 99]}}\n" for i in range(30))
    tried = check_space(read("search:\n" + lines), lambda settings: settings)
    assert 30 < tried < 3000
