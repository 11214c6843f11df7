"""Study files: what is read, what is refused where, and that the project's own print what the paper prints."""

from __future__ import annotations

import pytest

from efafnet.models.variants import VARIANTS
from efafnet.tune_spaces.space import SpaceError
from efafnet.tune_spaces.study import available_studies, load_study, parse_study, slug

TEXT = """\
about: for tests
baseline: plain
settings: {loss.kind: ohkm, optimizer.lr: 1e-3}
rows:
  - {name: plain}
  - name: more joints
    network: sbn_r50_256x192
    settings: {loss.hard_joints: =num_joints, optimizer.lr: 2e-3}
    paper: 70
    note: a note
  - {name: another's, paper: 71.5, missing: not among the networks}
"""

PAPER = {
    "table_i": [67.1, 66.9, 68.6, 70.6, 69.4, 71.6, 70.4, 72.2, 72.8, 73.1, 73.8],
    "table_vi": [70.4, 70.9, 71.5, 70.9, 70.6, 72.8],
    "table_vii": [70.4, 70.8, 71.1, 71.5],
    "table_viii": [70.4, 70.8, 71.5],
    "table_x": [71.3, 72.8, 71.2, 71.6, 71.2, 72.3],
    "table_xi": [70.4, 72.2, 72.8, 73.1, 73.8],
    "table_xii": [66.9, 73.8, 74.5, 75.0],
}
"""AP columns as printed, from top to bottom."""


def test_a_study_is_read() -> None:
    study = parse_study(TEXT, "my.yaml", {"num_joints": 4})
    plain, more, other = study.rows
    assert (study.name, study.baseline, study.about) == ("my", "plain", "for tests")
    assert plain.settings == {"loss.kind": "ohkm", "optimizer.lr": 1e-3}
    assert more.settings == {"loss.kind": "ohkm", "optimizer.lr": 2e-3, "loss.hard_joints": 4}
    assert (more.network, more.paper, more.note, more.line) == ("sbn_r50_256x192", 70.0, "a note", 6)
    assert (other.missing, other.paper, other.settings) == ("not among the networks", 71.5, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("about: for tests\n", ""), r"my\.yaml:1: about is missing"),
        (("about:", "abuot:"), r"my\.yaml:1: unknown section 'abuot'"),
        (("paper: 70", "papre: 70"), r"my\.yaml:9: unknown word of a row 'papre'"),
        (("paper: 70", "paper: lots"), r"my\.yaml:9: paper is a number; got 'lots'"),
        (("sbn_r50_256x192", "sbn_r50_256x129"), r"my\.yaml:7: no network .*did you mean 'sbn_r50_256x192'"),
        (("baseline: plain", "baseline: best"), r"my\.yaml:2: the baseline 'best' is no row.*'plain', 'more joints'"),
        (("baseline: plain", "baseline: another's"), r"my\.yaml:2: the baseline"),
        (("name: plain", "name: More+Joints"), r"my\.yaml:6: row 'more joints' is named like that of line 5"),
        (("{name: plain}", "{note: x}"), r"my\.yaml:5: a row needs a name"),
        (("paper: 71.5,", "network: sbn_r50_256x192,"), r"my\.yaml:11: a row is either missing or"),
        (("settings: {loss.kind", "settings: {optimizer.lr: 3, loss.kind"), r"my\.yaml:3: optimizer\.lr stands here"),
        (("rows:\n", "rows: [\n"), r"my\.yaml:\d+: not YAML"),
    ],
)
def test_what_is_no_study_is_refused_by_file_and_line(change: tuple[str, str], message: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(SpaceError, match=message):
        parse_study(TEXT.replace(*change), "my.yaml", {"num_joints": 4})


def test_an_unknown_study_is_refused() -> None:
    with pytest.raises(SpaceError, match="no study 'table_ix'; there are table_i, table_vi"):
        load_study("table_ix")
    with pytest.raises(SpaceError, match=r"nowhere\.yaml cannot be read"):
        load_study("nowhere.yaml")


def test_a_name_becomes_part_of_a_directorys_name() -> None:
    assert slug("SBN [60]+FAM") == "sbn-60-fam"
    assert slug("R = 8") == "r-8"
    assert slug("…") == "row"


def test_the_papers_tables_are_there_as_printed() -> None:
    assert available_studies() == sorted(PAPER)
    for name, column in PAPER.items():
        assert [row.paper for row in load_study(name, {"num_joints": 17}).rows if row.paper] == column


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_rows_network_is_the_one_that_prints_its_figure(name: str) -> None:
    """models/variants.py was written from the paper too: figures and tables must agree."""
    table = name.removeprefix("table_").upper()
    for row in load_study(name, {"num_joints": 17}).rows:
        if row.network is not None and row.paper is not None and table != "X":
            printed = VARIANTS[row.network].paper
            assert printed.ap == row.paper, row.name
            assert table in printed.tables, row.name
            assert row.paper_params_m in (None, printed.params_m)


def test_table_x_varies_r_and_nothing_else() -> None:
    rows = load_study("table_x", {"num_joints": 17}).rows
    assert [row.settings["loss.hard_joints"] for row in rows] == [7, 8, 11, 13, 15, 16, 17]
    assert {row.network for row in rows} == {"efafnet_r50_256x192"}
