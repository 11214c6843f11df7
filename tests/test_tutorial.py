"""docs/tutorial.md, followed: its program and its commands, in order, on pictures of one's own.

``EFAFNET_TUTORIAL=full .venv/bin/python -m pytest tests/test_tutorial.py`` runs every command as it stands, on fifty
drawn pictures: that asks for a GPU, and for the network to fetch ImageNet's and the detector's weights.
``EFAFNET_TUTORIAL=cpu`` runs the same lengths with the small network that the page names for machines without a GPU,
and leaves out what needs weights; with ``--basetemp=FOLDER`` its pictures can be looked at. Without the variable
trainings are a few steps of a tiny network, and the search is left out too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from efafnet.pipelines.cli import main
from tests.crop_data import write_coco

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
MODE = os.environ.get("EFAFNET_TUTORIAL", "tiny")
SERVES = "serve"
"""The command that does not return; test_serving and its neighbours start it."""
TINY = {
    "sbn_r50_256x192": "nano_test",
    "imagenet.download=true": "network={encoder: nano, base_width: 8, fam: none, fsm: none, ffm: false, "
    "head: deconvolution, auxiliary_stages: []}",
    "batch_size=16": "batch_size=8",
    "epochs=200": "epochs=1",
    "schedule.kind=cosine": None,
    "validation.every_epochs=20": None,
    "runs/mine_best": "runs/mine",
}
"""What is written otherwise where the tutorial is followed in seconds; None for nothing."""
CPU = {"sbn_r50_256x192": "synth_nano", "imagenet.download=true": None}


def blocks() -> list[tuple[str, str]]:
    """The page's code: (language, text), in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The commands of a block, without ``efafnet``."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("efafnet ")]


def followable(words: list[str]) -> list[str] | None:
    """A command as this machine can follow it; None for one that is left out."""
    if MODE == "full":
        return words
    searched = words[0] == "tune" or "name=mine_best" in words
    if any(word.startswith("detector.weights=") for word in words) or (searched and MODE == "tiny"):
        return None
    instead = TINY if MODE == "tiny" else CPU
    return [written for word in words if (written := instead.get(word, word)) is not None]


def own_pictures(folder: Path) -> None:
    """Fifty pictures with persons: ``mine.json`` and ``images/``."""
    if MODE != "tiny":
        assert main(["synth", str(folder / "drawn"), "people=clear", "images.train=50", "images.val=1"]) == 0
        shutil.copytree(folder / "drawn/images/train", folder / "images")
        shutil.copy(folder / "drawn/annotations/train.json", folder / "mine.json")
    else:
        write_coco(folder, images=50, persons=1, size=(96, 96))
        (folder / "annotations.json").rename(folder / "mine.json")
    shutil.copy(next((folder / "images").iterdir()), folder / "street.jpg")


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.timeout(600 if MODE == "tiny" else 0)
def test_the_tutorial_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    own_pictures(tmp_path)
    followed = []
    for language, text in blocks():
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        for words in commands(text):
            wanted = followable(words)
            if wanted is None or words[0] == SERVES:
                continue
            assert main(wanted) == 0, f"{shlex.join(wanted)}\n{capsys.readouterr().err}"
            followed.append(words[0])
    persons = {
        part: len(json.loads((tmp_path / f"{part}.json").read_text())["annotations"]) for part in ("train", "val")
    }
    assert set(followed) >= {"prepare", "inspect", "train", "evaluate", "predict", "export"}
    for made in ("stores/val/manifest.json", "runs/mine/best/meta.json", "runs/mine/evaluation/best.jpg", "mine.onnx"):
        assert (tmp_path / made).exists(), made
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert MODE != "tiny" or (persons, len(found)) == ({"train": 40, "val": 10}, 50), "one person for each whole image"


def test_every_command_of_the_tutorial_is_known() -> None:
    told = [words[0] for _, text in blocks() for words in commands(text)]
    assert told == [
        "prepare", "prepare", "inspect", "train", "evaluate", "tune", "train", "predict", "predict", "export", "serve",
    ]  # fmt: skip
    assert set(TINY) <= {word for _, text in blocks() for words in commands(text) for word in words}
