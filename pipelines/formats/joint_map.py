"""One set of joints from several: which joint of a source is which of the store's; the rest is absent there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.formats.annotations import Annotation, Annotations
from efafnet.pipelines.formats.values import shown
from efafnet.platform.yaml_text import load_yaml, problem_of, read_yaml_file

JointMap = Literal["by_name"] | dict[str, str] | Path
"""Joint of the store to joint of the source, as a mapping or a YAML file of one; by_name: those of equal names."""


def mapped(content: Annotations, target: Skeleton, joint_map: JointMap, where: str) -> tuple[Annotations, list[str]]:
    """``content`` with the joints of ``target``, and what is worth knowing; those without a source are not annotated.

    Raises ValueError naming a joint that the store or the source does not have, or that is given twice.
    """
    own, places = content.skeleton.joints, _places(joint_map, content.skeleton, target, where)
    absent = [name for name, place in zip(target.joints, places, strict=True) if place is None]
    unused = [name for index, name in enumerate(own) if index not in places]
    remarks = [f"{where}: {len(own) - len(unused)} of its {len(own)} joints are {target.name}'s"]
    if absent:
        remarks[0] += f"; it does not annotate {', '.join(absent)}"
    if unused:
        remarks[0] += f"; {', '.join(unused)} are left out"
    people = [_moved(annotation, places) for annotation in content.annotations]
    return replace(content, skeleton=target, annotations=people), remarks


def _moved(annotation: Annotation, places: list[int | None]) -> Annotation:
    nothing = (0.0, 0.0, 0.0)
    triples = [nothing if n is None else annotation.keypoints[3 * n : 3 * n + 3] for n in places]
    seen = sum(triple[2] > 0 for triple in triples)
    keypoints = tuple(value for triple in triples for value in triple)
    return replace(annotation, keypoints=keypoints, num_keypoints=min(seen, annotation.num_keypoints))


def _places(joint_map: JointMap, own: Skeleton, target: Skeleton, where: str) -> list[int | None]:
    """Index among the source's joints of each of the store's; None where it has none."""
    if isinstance(joint_map, str):
        names = {name: name for name in target.joints if name in own.joints}
    else:
        names = _read(joint_map, where) if isinstance(joint_map, Path) else joint_map
    for given, known, what in (
        (names.keys(), target.joints, f"the store's {target.name}"),
        (names.values(), own.joints, "the source"),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{where}: joint_map: {what} has no joint {unknown[0]!r}; its joints: {', '.join(known)}")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: joint_map gives {twice[0]!r} to several joints; each can be one")
    if not names:
        raise ValueError(
            f"{where}: joint_map names no joint that {target.name} and the source share; give pairs of "
            "STORE_JOINT: SOURCE_JOINT"
        )
    return [own.joints.index(names[name]) if name in names else None for name in target.joints]


def _read(path: Path, where: str) -> dict[str, str]:
    try:
        content: Any = load_yaml(read_yaml_file(path.expanduser()))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = problem_of(error) if isinstance(error, yaml.YAMLError) else type(error).__name__
        raise ValueError(f"{where}: joint_map={path} cannot be read ({reason}); give a YAML file") from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for pair in content.items() for v in pair):
        raise ValueError(f"{where}: joint_map={path} must be lines of STORE_JOINT: SOURCE_JOINT; got {shown(content)}")
    return content
