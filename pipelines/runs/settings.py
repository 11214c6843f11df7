"""From the settings that all runs of a set start from to those of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from efafnet.pipelines.training.config import TrainConfig

if TYPE_CHECKING:
    from efafnet.pipelines.training.inputs import Inputs


def with_settings(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with dotted settings put in; the input stays as it is."""
    result = dict(tree)
    for key, value in settings.items():
        group, _, rest = key.partition(".")
        inner = result.get(group)
        result[group] = with_settings(inner if isinstance(inner, Mapping) else {}, {rest: value}) if rest else value
    return result


def names_of(config: TrainConfig, inputs: Inputs) -> dict[str, float]:
    """What numbers in the file of a space or a study may refer to."""
    steps = inputs.plan(config).full_steps
    return {"num_joints": inputs.skeleton.num_joints, "epochs": float(config.epochs), "steps": steps}


def check_run(run: TrainConfig, inputs: Inputs) -> None:
    """Refuse what only the data shows to be impossible.

    Raises:
        ValueError: more hard joints than the skeleton has, or samples that the crop store was not prepared for.
    """
    run.loss.check(inputs.skeleton.num_joints)
    manifest = inputs.train.manifest
    manifest.envelope.check(run.augmentation, run.input, any_reduced=manifest.counts.reduced > 0)


def automatic_name(config: TrainConfig, stem: str, identity: Mapping[str, Any]) -> str:
    """A name for a set that the same command gives again and any other does not: ``ohkm-3f9a01c2``."""
    if config.name != "auto":
        return config.name
    from efafnet.platform.storage import sha256_json

    return f"{stem}-{sha256_json(dict(identity))[:8]}"
