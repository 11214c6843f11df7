"""The synthetic people of a study that names no data."""

from __future__ import annotations

from pathlib import Path

import pytest

from efafnet.pipelines.runs.settings import names_of
from efafnet.pipelines.study import people
from efafnet.pipelines.study.config import StudyConfig, plan_rows
from efafnet.pipelines.study.people import synthetic_people
from efafnet.pipelines.synth import dataset
from efafnet.pipelines.synth.dataset import SplitCounts, SynthConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.platform.configuration import load_preset, resolve
from efafnet.tune_spaces.study import available_studies, load_study


def test_people_drawn_by_other_settings_or_another_version_are_named_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Path] = []

    def draw(config: SynthConfig) -> None:
        config.out.mkdir(parents=True)
        drawn.append(config.out)

    monkeypatch.setattr(people, "run_synth", draw)
    monkeypatch.setattr(people, "run_prepare", lambda config: config.out.mkdir(parents=True, exist_ok=True))
    config = resolve(StudyConfig, load_preset("study_nano") | {"study": "table_x", "runs": tmp_path})
    first = synthetic_people(config, SplitCounts(train=3, val=2))
    assert "not used" not in capsys.readouterr().err
    assert synthetic_people(config, SplitCounts(train=3, val=2)) == first
    assert len(drawn) == 1
    others = [synthetic_people(config, SplitCounts(train=4, val=2))]
    monkeypatch.setattr(dataset, "drawing_digest", lambda: "another version")
    others.append(synthetic_people(config, SplitCounts(train=3, val=2)))
    assert len({first.train, *(data.train for data in others)}) == len(set(drawn)) == 3
    told = capsys.readouterr().err.replace("\n", " ")
    assert told.count("not used") == 2
    assert Path(str(first.train)).parents[1].name in told


@pytest.mark.slow
@pytest.mark.no_ray
def test_the_papers_tables_can_run_on_the_people_they_are_given(tmp_path: Path) -> None:
    """Every table plans on the stores that a study without data makes: sizes, joints and networks fit."""
    tree = load_preset("study_nano") | {"study": "table_x", "runs": tmp_path}
    bare = resolve(StudyConfig, tree)
    data = synthetic_people(bare, SplitCounts(train=3, val=2))
    assert synthetic_people(bare, SplitCounts(train=3, val=2)) == data  # what is there is not made again
    assert "/synthetic/clear-" in str(data.train)
    config = bare.model_copy(update={"data": data})
    inputs = open_inputs(config)
    running = {}
    for name in available_studies():
        plans = plan_rows(load_study(name, names_of(config, inputs)), config, config.base(), inputs)
        running[name] = sum(plan.config is not None for plan in plans)
    assert running == {
        "table_i": 7, "table_vi": 8, "table_vii": 6, "table_viii": 4, "table_x": 7, "table_xi": 5, "table_xii": 2,
    }  # fmt: skip
