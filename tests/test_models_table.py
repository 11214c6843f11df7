"""`efafnet models` and `efafnet presets`: the printed tables and their remarks."""

from __future__ import annotations

import pytest

from efafnet.models.variants import VARIANTS
from efafnet.pipelines.cli import main
from efafnet.pipelines.models_table import ModelsConfig, run_models
from efafnet.platform.configuration import preset_names


def test_prints_our_figures_beside_the_papers_and_says_why_they_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run_models(ModelsConfig(names=("sbn_r50_256x192", "sbn_r50_fasm_c")))
    text = capsys.readouterr().out
    (baseline,) = [line for line in text.splitlines() if line.startswith("│ sbn_r50_256x192")]
    cells = [cell.strip() for cell in baseline.strip("│").split("│")]
    assert cells[1:9] == ["256x192", "34.00", "5.43", "8.99", "92", "34", "8.90", "70.4"]
    assert "sbn_r50_fasm_c: +0.90 M, -1.07 paper-G; one FASM unit after each stage" in text
    assert "weights x OUTPUT positions" in text
    run_models(ModelsConfig(names=("hrnet_w32_256x192", "hourglass8_256x192")))
    peers = capsys.readouterr().out
    (hrnet,) = [line for line in peers.splitlines() if line.startswith("│ hrnet_w32_256x192")]
    assert [cell.strip() for cell in hrnet.strip("│").split("│")][2:8] == [
        "28.54",
        "7.65",
        "7.12",
        "151",
        "28.5",
        "7.10",
    ]
    assert "hourglass8_256x192: +0.34 M, +4.88 paper-G; with all biases" in peers


def test_other_skeletons_change_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    run_models(ModelsConfig(names=("sbn_nano",), skeleton="crowdpose14"))
    assert "sbn_nano" in capsys.readouterr().out
    with pytest.raises(ValueError, match="skeleton=coco: unknown; known: coco17, mpii16, crowdpose14"):
        run_models(ModelsConfig(skeleton="coco"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no network is called 'resnet'"):
        run_models(ModelsConfig(names=("resnet",)))


def test_every_difference_of_note_has_a_reason() -> None:
    for v in VARIANTS.values():
        if v.paper.params_m is not None:
            assert v.note


def test_presets_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = lines[lines.index("coco_r50_256x192") + 1 :][:2]
    assert told[0] == "    EFAFNet R50 on COCO at 256x192: the paper's recipe, published AP 72.8 on val2017."
    assert told[1].startswith("    efafnet on resnet50, 256x192, published AP 72.8, ")
    assert "GMAC a crop" in told[1]
    assert [line for line in lines if line and line[0] != " "][:-1] == preset_names()
