"""What trials and runs are called after, and how their settings are put into a tree."""

from __future__ import annotations

from efafnet.pipelines.runs.settings import with_settings
from efafnet.pipelines.search.naming import describe, short_names


def test_short_names_are_the_shortest_ends_that_differ() -> None:
    assert short_names(["optimizer.lr", "loss.kind", "schedule.kind", "a.b.c", "d.b.c"]) == {
        "optimizer.lr": "lr",
        "loss.kind": "loss",
        "schedule.kind": "schedule",
        "a.b.c": "a.b.c",
        "d.b.c": "d.b.c",
    }
    settings = {"optimizer.lr": 0.0031234, "loss.kind": "ohkm", "network.auxiliary_stages": ["c4", "c5"], "seed": 3}
    assert describe(settings, [*settings][:3]) == "lr=0.00312 loss=ohkm auxiliary_stages=c4/c5"
    for kind, told in (("ohkm", "loss=ohkm R=10"), ("mse", "loss=mse")):  # which does not read R
        assert describe({"loss.kind": kind, "loss.hard_joints": 10}, ["loss.kind", "loss.hard_joints"]) == told


def test_settings_are_put_into_the_tree_without_touching_it() -> None:
    tree = {"input": {"height": 64, "width": 64}, "loss": {"kind": "mse", "hard_joints": 8}}
    changed = with_settings(tree, {"input": "128x96", "loss.kind": "ohkm", "new.deep.key": 1})
    assert changed == {"input": "128x96", "loss": {"kind": "ohkm", "hard_joints": 8}, "new": {"deep": {"key": 1}}}
    assert tree == {"input": {"height": 64, "width": 64}, "loss": {"kind": "mse", "hard_joints": 8}}
