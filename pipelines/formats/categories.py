"""Which of a file's categories are the persons, and the skeleton that such a category describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from efafnet.models.skeleton import SKELETONS, Skeleton, pairs_by_name, spelled_alike
from efafnet.pipelines.formats.values import integer, no_integer, number, shown
from efafnet.platform.configuration_errors import rule_of

PERSON_CATEGORY = 1
"""COCO's number of the person category, taken where a file names none."""

CategoryNames = Annotated[
    tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str | int) else value),
]
"""Categories as settings name them: names or numbers, one alone also without brackets."""

# Sigma of a joint that nobody has measured: near the mean of COCO's (.062).
_DEFAULT_SIGMA = 0.05


@dataclass(frozen=True)
class Category:
    """One category of a file."""

    number: int
    name: str
    entry: dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """The categories whose annotations are used."""

    numbers: frozenset[int]
    default: int
    """That of an annotation without one."""
    names: dict[int, str] = field(default_factory=dict)
    """Of every category of the file."""

    def number_of(self, value: Any) -> int | None:
        """Category of an annotation: its number, or its name in any case; None for what is neither."""
        if value is None:
            return self.default
        if (found := integer(value)) is not None:
            return found
        if isinstance(value, str):
            return named(self.names, value)
        return None

    def shown(self, number: int) -> str:
        """Number and name, as messages give them."""
        return f"{number} ({self.names[number]})" if self.names.get(number) else str(number)

    def __str__(self) -> str:
        return ", ".join(map(self.shown, sorted(self.numbers)))


def choose(
    categories: Any, wanted: Sequence[str], where: str, *, by_joints: bool = True
) -> tuple[Chosen, list[Category]]:
    """The wanted categories of a file: those named, by name or number, else the only one that lists joints.

    Without ``by_joints`` a category called person is enough, or the only one there is. Raises ValueError naming the
    choices where it cannot be decided.
    """
    known = _categories(categories, where)
    names = {category.number: category.name for category in known}
    if wanted:
        chosen = [_named(known, name, where) for name in wanted]
    else:
        with_joints = [category for category in known if category.entry.get("keypoints")]
        persons = [category for category in known if category.name == "person"]
        chosen = with_joints if by_joints else persons or with_joints or known
        if len(chosen) > 1:
            found = ", ".join(f"{category.number} {category.name}" for category in chosen)
            what = "keypoints in several categories" if by_joints else "several categories"
            raise ValueError(f"{where} has {what} ({found}); say which are meant: categories=[{chosen[0].name}]")
    numbers = frozenset(category.number for category in chosen) or frozenset({PERSON_CATEGORY})
    return Chosen(numbers, chosen[0].number if chosen else PERSON_CATEGORY, names), chosen


def _categories(entries: Any, where: str) -> list[Category]:
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise ValueError(f"{where}: 'categories' must be a list of objects; got {shown(entries)}")
    found = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: category {place} must be an object with id and name; got {shown(entry)}")
        number = integer(entry.get("id"))
        if number is not None:
            found.append(Category(number, str(entry.get("name") or ""), entry))
        elif entry.get("keypoints"):
            raise ValueError(
                f"{where}: the category {str(entry.get('name') or place)!r} has the id {no_integer(entry.get('id'))}"
            )
    return found


def named(names: Mapping[int, str], wanted: str) -> int | None:
    """Number of the category called ``wanted``: so exactly, or alone so in other letter cases; None for none."""
    exact = next((number for number, name in names.items() if name == wanted), None)
    folded = [number for number, name in names.items() if name.casefold() == wanted.casefold()]
    return folded[0] if exact is None and len(folded) == 1 else exact


def is_joint(name: str) -> bool:
    """Whether a known skeleton has a joint of that name, in any spelling."""
    return any(spelled_alike([name], [joint]) for skeleton in SKELETONS.values() for joint in skeleton.joints)


def _named(known: Sequence[Category], wanted: str, where: str) -> Category:
    number = named({category.number: category.name for category in known}, wanted)
    for category in known:
        if wanted == str(category.number) or category.number == number:
            return category
    names = ", ".join(f"{category.number} {category.name}" for category in known) or "none"
    raise ValueError(f"{where} has no category {wanted!r}; its categories are: {names}")


def skeleton_of(
    chosen: Sequence[Category], wanted: Skeleton | None, where: str, remedy: Callable[[], str]
) -> tuple[Skeleton, list[str]]:
    """Joints of the chosen categories, and what had to be assumed; ``wanted`` is the skeleton asked for by name.

    Raises ValueError where they cannot be had; ``remedy`` is asked what to do where no category lists its joints.
    """
    listing = [category for category in chosen if category.entry.get("keypoints")]
    if not listing:
        if wanted is None:
            raise ValueError(f"{where}: no category lists its keypoints, so the joints are unknown; {remedy()}")
        return wanted, [f"{where} names no joints: taken for {wanted.name}"]
    joints = {category.name: _joints(category, where) for category in listing}
    first = next(iter(joints.values()))
    if any(other != first for other in joints.values()):
        raise ValueError(f"{where}: the categories {', '.join(joints)} have other joints each; give one of them")
    if wanted is not None:
        if len(first) != wanted.num_joints:
            raise ValueError(
                f"{where} has {len(first)} joints, {wanted.name!r} has {wanted.num_joints}; leave skeleton=auto"
            )
        return wanted, []
    known = next((s for s in SKELETONS.values() if s.joints == first), None)
    if known is not None:
        return known, []
    alike = next((s for s in SKELETONS.values() if spelled_alike(first, s.joints)), None)
    if alike is not None:
        return alike, [f"{where}: its joints are those of {alike.name} in another spelling, and taken for them"]
    return custom_skeleton(listing[0].entry, where)


def _joints(category: Category, where: str) -> tuple[str, ...]:
    names = category.entry["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"{where}: 'keypoints' of the category {category.name!r} must be a list of joint names; got {shown(names)}"
        )
    return tuple(names)


def custom_skeleton(category: dict[str, Any], where: str) -> tuple[Skeleton, list[str]]:
    """Skeleton of a COCO category of its own, and what had to be assumed.

    Beside COCO's ``keypoints`` and ``skeleton`` (limbs from 1, or from 0 where a 0 occurs) the category may give
    ``sigmas``, ``flip_pairs`` and ``upper_body`` (from 0). Joints may be named instead of numbered. Raises ValueError
    naming file, field and value.
    """
    fields = _Fields(category, tuple(category["keypoints"]), where)
    remarks = []
    sigmas = fields.sigmas()
    if sigmas is None:
        sigmas = (_DEFAULT_SIGMA,) * len(fields.joints)
        remarks.append(f"{where}: joints of its own without sigmas; OKS uses {_DEFAULT_SIGMA} for every joint")
    pairs = fields.pairs("flip_pairs", first=0)
    if pairs is None:
        pairs = pairs_by_name(fields.joints)
        shown_pairs = ", ".join(f"{fields.joints[a]}/{fields.joints[b]}" for a, b in pairs) or "none"
        nothing = "" if pairs else "; where joints have sides, mirroring exchanges none: give flip_pairs then"
        remarks.append(f"{where}: flip pairs taken from the joints' names: {shown_pairs}{nothing}")
    limbs = fields.pairs("skeleton", first=fields.first_limb())
    if fields.first_limb() == 0:
        remarks.append(f"{where}: the limbs of its skeleton count joints from 0, and are taken so")
    upper_body = fields.upper_body()
    try:
        skeleton = Skeleton(
            name=str(category.get("name") or "custom"),
            joints=fields.joints,
            flip_pairs=pairs,
            limbs=limbs or (),
            sigmas=sigmas,
            upper_body=upper_body,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {sentence_of(error)}") from error
    return skeleton, remarks


class _Fields:
    """The fields of a category, each checked on the way out."""

    def __init__(self, category: dict[str, Any], joints: tuple[str, ...], where: str) -> None:
        self.category = category
        self.joints = joints
        self.where = where

    def bad(self, name: str, rule: str, value: Any) -> ValueError:
        of = str(self.category.get("name") or "custom")
        return ValueError(f"{self.where}: {name!r} of the category {of!r} must be {rule}; got {shown(value)}")

    def sigmas(self) -> tuple[float, ...] | None:
        values = self.category.get("sigmas")
        if values is None:
            return None
        rule = f"{len(self.joints)} numbers above 0, one for each joint, as shares of a person's scale"
        if not isinstance(values, list):
            raise self.bad("sigmas", rule, values)
        found = [number(value) for value in values]
        if len(found) != len(self.joints) or any(value is None or not 1e-6 <= value <= 10 for value in found):
            raise self.bad("sigmas", rule, values)
        return tuple(value for value in found if value is not None)

    def first_limb(self) -> int:
        """Number of the first joint in the limbs: COCO counts from 1, but a 0 is a joint as well."""
        pairs = self.category.get("skeleton")
        pairs = pairs if isinstance(pairs, list) else []
        return 0 if any(integer(end) == 0 for pair in pairs if isinstance(pair, list) for end in pair) else 1

    def pairs(self, name: str, first: int) -> tuple[tuple[int, int], ...] | None:
        values = self.category.get(name)
        if values is None:
            return None
        rule = f"pairs of joints, by name or by numbers {first} to {first + len(self.joints) - 1}"
        if not isinstance(values, list):
            raise self.bad(name, rule, values)
        found = []
        for pair in values:
            ends = [self._joint(end, first) for end in pair] if isinstance(pair, list) else []
            if len(ends) != 2 or None in ends:
                raise self.bad(name, rule, pair)
            found.append((ends[0], ends[1]))
        return tuple(found)  # type: ignore[arg-type]  # none of them is None

    def upper_body(self) -> tuple[int, ...]:
        values = self.category.get("upper_body")
        rule = f"a list of joints, by name or by numbers 0 to {len(self.joints) - 1}"
        if values is None:
            return ()
        found = [self._joint(value, 0) for value in values] if isinstance(values, list) else [None]
        if None in found:
            raise self.bad("upper_body", rule, values)
        return tuple(joint for joint in found if joint is not None)

    def _joint(self, value: Any, first: int) -> int | None:
        """Index from 0 of a joint given by name, or by a number that counts from ``first``."""
        if isinstance(value, str) and value in self.joints:
            return self.joints.index(value)
        found = integer(value)
        return found - first if found is not None and 0 <= found - first < len(self.joints) else None


def sentence_of(error: Exception) -> str:
    """The first rule that was broken, with the field and its value, in this program's words."""
    if not isinstance(error, ValidationError):
        return str(error).partition("\n")[0] or type(error).__name__
    detail = error.errors()[0]
    field, rule = ".".join(map(str, detail["loc"])), rule_of(detail)
    if detail["type"] in ("value_error", "missing"):
        # The one was written here and names what it is about; of the other there is no value.
        return rule if detail["type"] == "value_error" else f"{field} {rule}"
    return f"{field or 'its content'} = {shown(detail['input'])}: {rule}"
