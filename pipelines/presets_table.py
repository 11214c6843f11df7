"""`efafnet presets`: the recipes to start from, each with its sentence, network, input, published figure and cost."""

from __future__ import annotations

import re
from importlib import resources

from efafnet.models.known_costs import Cost, looked_up
from efafnet.models.settings import Settings
from efafnet.models.skeleton import COCO_17, CROWDPOSE_14, MPII_16
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform import console
from efafnet.platform.configuration import PRESETS, load_preset, preset_names, resolve

_SKELETONS = {"mpii": MPII_16, "crowdpose": CROWDPOSE_14}
"""Persons of the data that a preset's name begins with; all others are for COCO's."""


class PresetsConfig(Settings):
    """Nothing to set."""


def run_presets(_config: PresetsConfig) -> None:
    """Print the presets."""
    for name in preset_names():
        config, sentence = resolve(TrainConfig, load_preset(name)), sentence_of(name)
        cost = cost_of(name, config)
        figure = re.search(r"AP (\d+\.\d)", sentence)
        facts = [config.network.in_words, str(config.input)]
        facts += [f"published AP {figure[1]}"] if figure else []
        facts += [f"{cost.params_m:.1f} M parameters", f"{cost.gmac:.2f} GMAC a crop"] if cost else []
        facts += [f"{config.epochs:g} epochs of batch {config.batch_size}"]
        console.say(name, style="bold")
        console.say(f"    {sentence}")
        console.say(f"    {', '.join(facts)}")
    console.say(
        "efafnet train NAME --print-config shows every setting of one; your own is a YAML file of the same form."
    )


def sentence_of(name: str) -> str:
    """The comment that a preset's file begins with."""
    lines = (resources.files(PRESETS) / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def cost_of(name: str, config: TrainConfig) -> Cost | None:
    """The stored cost of a preset's network at its input; None where it is not stored."""
    skeleton = _SKELETONS.get(name.partition("_")[0], COCO_17)
    return looked_up(config.network, skeleton.num_joints, config.input)
