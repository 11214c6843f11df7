from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from efafnet.models.settings import InputSize, Settings
from efafnet.platform.configuration import (
    ConfigurationError,
    absolute_paths,
    apply_overrides,
    describe,
    digest,
    flatten,
    load_preset,
    parse_value,
    preset_names,
    read_tree,
    resolve,
    to_yaml,
)
from efafnet.platform.yaml_text import load_yaml


class Loss(Settings):
    kind: Literal["mse", "ohkm"] = "mse"
    """Which loss."""
    hard_joints: int = Field(default=8, ge=1)
    """R, number of joints."""


class Multistep(Settings):
    kind: Literal["multistep"] = "multistep"
    milestones: tuple[int, ...] = (170, 200)
    """Epochs."""


class Cosine(Settings):
    kind: Literal["cosine"] = "cosine"
    floor: float = 0.0


class Run(Settings):
    loss: Loss = Loss(kind="ohkm", hard_joints=5)
    """The loss."""
    input: InputSize = InputSize(height=256, width=192)
    """Input size, pixels."""
    schedule: Multistep | Cosine = Field(default=Multistep(), discriminator="kind")
    runs: Path = Path("runs")
    """Where runs go."""
    stores: tuple[Path, ...] = ()
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate per step."""
    steps: int | None = None
    name: str = "train"

    @model_validator(mode="after")
    def _possible(self) -> Run:
        if self.loss.hard_joints > 17:
            raise ValueError(f"loss.hard_joints = {self.loss.hard_joints}: the skeleton has 17 joints; take 17 or less")
        return self


class Needy(Settings):
    data: Path
    """Crop store."""


def run(*overrides: str, tree: dict[str, Any] | None = None) -> Run:
    return resolve(Run, apply_overrides(tree or {}, overrides))


# ---- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("256x192", "256x192"),
        ("null", None),
        ("", None),
        ("~", None),
        ("[1, 2e-1, a]", [1, 0.2, "a"]),
        ("{kind: cosine, floor: 1e-2}", {"kind": "cosine", "floor": 0.01}),
        ("'1e-3'", "1e-3"),
        ("a=b", "a=b"),
    ],
)
def test_values_are_read_as_people_mean_them(text: str, value: object) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_unreadable_value_names_the_key() -> None:
    with pytest.raises(ConfigurationError, match=r"schedule\.milestones=\[1: not a readable value"):
        apply_overrides({}, ["schedule.milestones=[1"])


# ---- overrides


def test_overrides_reach_into_missing_and_null_groups() -> None:
    tree = {"a": None, "keep": 1}
    assert apply_overrides(tree, ["a.b.c=1", "d.e=x", "a.b.f=2"]) == {
        "a": {"b": {"c": 1, "f": 2}},
        "keep": 1,
        "d": {"e": "x"},
    }
    assert tree == {"a": None, "keep": 1}, "the preset itself must stay as it was"


def test_the_last_override_wins_and_a_group_can_be_replaced_whole() -> None:
    assert apply_overrides({"a": {"x": 1, "y": 2}}, ["a={x: 3}", "b=1", "b=2"]) == {"a": {"x": 3}, "b": 2}


def test_reaching_inside_a_plain_value_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"input\.height=384: input is set to '256x192', .* set input=… as a"):
        apply_overrides({"input": "256x192"}, ["input.height=384"])


@pytest.mark.parametrize("text", ["lr", "=3", "a..b=1", "a b=1", "1a=2", ".a=1"])
def test_what_is_not_a_setting_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="settings are written key=value"):
        apply_overrides({}, [text])


# ---- resolving


def test_a_partly_given_group_keeps_what_its_owner_declares() -> None:
    # Loss's own default kind is mse; Run declares ohkm, and an override of one member must not undo that.
    assert run("loss.hard_joints=9").loss == Loss(kind="ohkm", hard_joints=9)
    assert run("input.height=384").input == InputSize(height=384, width=192)


def test_alternatives_of_a_group() -> None:
    assert run("schedule.milestones=[1, 2]").schedule == Multistep(milestones=(1, 2))
    assert run("schedule.kind=cosine", "schedule.floor=1e-2").schedule == Cosine(floor=0.01)
    with pytest.raises(ConfigurationError, match=r"no setting 'schedule\.floor' in the chosen kind of 'schedule'"):
        run("schedule.floor=1e-2")


def test_optional_settings_take_null() -> None:
    assert run("steps=5").steps == 5
    assert run("steps=null", tree={"steps": 5}).steps is None
    assert run("steps=", tree={"steps": 5}).steps is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.hard_joint=3", "there is no setting 'loss.hard_joint'; did you mean 'loss.hard_joints'?"),
        ("hard_joints=3", "there is no setting 'hard_joints'; did you mean 'loss.hard_joints'?"),
        ("loss.banana=3", "there is no setting 'loss.banana'; in 'loss' there are: loss.kind, loss.hard_joints"),
        ("lr=fast", "lr = 'fast': takes float > 0 (Learning rate per step.)"),
        ("lr=-1e-3", "lr = -0.001: must be greater than 0 (Learning rate per step.)"),
        ("lr=.inf", "lr = inf: must be a finite number (Learning rate per step.)"),
        ("loss.kind=mae", "loss.kind = 'mae': takes mse | ohkm; did you mean 'mse'? (Which loss.)"),
        ("input=250x192", "input = '250x192': height must be a positive multiple of 32; got 250"),
        ("steps=1.5", "steps = 1.5: takes int or null"),
        ("loss=3", "loss = 3: is a group of settings; write loss.kind=…; in it there are: loss.kind, loss.hard_joints"),
        ("loss.hard_joints=20", "loss.hard_joints = 20: the skeleton has 17 joints; take 17 or less"),
        ("schedule.kind=step", "schedule.kind = 'step': takes multistep | cosine"),
    ],
)
def test_mistakes_name_key_value_and_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(override)
    parts = message.split(".*")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_counted_and_the_source_is_named() -> None:
    tree = apply_overrides({}, ["lr=x", "zzz=1", "steps=q"])
    with pytest.raises(ConfigurationError, match=r"^preset p: lr = 'x'.* \(and 2 more: steps, zzz\)$"):
        resolve(Run, tree, "preset p")


def test_a_required_setting_says_what_it_is() -> None:
    with pytest.raises(ConfigurationError, match=r"data is required \(path\): give data=… \(Crop store\.\)"):
        resolve(Needy, {})


# ---- presets and files


def test_every_shipped_preset_is_a_tree() -> None:
    for name in preset_names():
        assert isinstance(load_preset(name), dict), name


def test_unknown_preset_suggests() -> None:
    assert load_preset("sbn_r50_256x192")["protocol"] == "sbn"
    with pytest.raises(
        ConfigurationError, match=r"no preset 'sbn_r50'; did you mean 'sbn_r50_256x192'\?; presets: coco_r101_384x288, "
    ):
        load_preset("sbn_r50")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2\n", r"p\.yaml, line 2: not readable YAML"),
        ("a: 1\nb: 2\na: 3\n", r"p\.yaml, line 3: not readable YAML \(key 'a' appears twice\)"),
        ("- 1\n", r"p\.yaml: expected `key: value` lines, got list"),
        ("!!python/object:os.system {}\n", "not readable YAML"),
    ],
)
def test_broken_preset_file_names_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load_preset(str(tmp_path / "p.yaml"))


def test_absent_preset_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read: No such file"):
        load_preset(str(tmp_path / "none.yaml"))


def test_a_preset_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efafnet.platform.yaml_text.LARGEST_BYTES", 2_000_000)
    with pytest.raises(ConfigurationError, match=r"preset file /dev/zero cannot be read: it holds more than 2 MB"):
        load_preset("/dev/zero")


def test_an_empty_preset_is_all_defaults() -> None:
    assert resolve(Run, read_tree("# nothing\n", "p")) == Run()


# ---- text, identity, paths


@pytest.mark.parametrize(
    "name", ["1e-3", "no", "null", "1:30", "0x1F", "2024-01-02", "a: b", "é", "yes", "~", "", "<<"]
)
def test_written_settings_read_back_equal(name: str) -> None:
    settings = Run(name=name, lr=1e-5, schedule=Cosine(floor=1e-9), stores=(Path("a"), Path("b")))
    text = to_yaml(settings)
    assert resolve(Run, read_tree(text, "text")) == settings
    assert load_yaml(text)["name"] == name


def test_digest_depends_on_values_only() -> None:
    assert digest(run("lr=2e-3", "steps=3")) == digest(run("steps=3", "lr=0.002"))
    assert digest(run("lr=2e-3")) != digest(run("lr=2.1e-3"))
    assert len(digest(Run())) == 16
    assert digest(run("runs=/elsewhere"), exclude=["runs"]) == digest(Run(), exclude=["runs"])
    assert digest(run("loss.kind=mse"), exclude=["loss.kind"]) == digest(run(), exclude=["loss.kind"])


def test_paths_become_absolute_where_the_user_wrote_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    settings = absolute_paths(run("stores=[a, ~/b, /c]"))
    assert settings.runs == tmp_path / "runs"
    assert settings.stores == (tmp_path / "a", Path("/home/someone/b"), Path("/c"))
    assert absolute_paths(settings, Path("/other")) == settings
    assert os.fspath(absolute_paths(run(), Path("/other")).runs) == "/other/runs"


def test_an_address_is_not_a_path() -> None:
    with pytest.raises(ConfigurationError, match=r"runs = s3:/bucket/x: must be a path on a file system"):
        absolute_paths(run("runs=s3://bucket/x"))


# ---- help


def test_help_has_every_setting_with_the_owners_defaults() -> None:
    rows = {row.key: row for row in describe(Run)}
    assert list(rows)[:3] == ["loss", "loss.kind", "loss.hard_joints"]
    assert rows["loss"].is_group
    assert (rows["loss.kind"].type, rows["loss.kind"].default) == ("mse | ohkm", "ohkm")
    assert (rows["loss.hard_joints"].type, rows["loss.hard_joints"].default) == ("int >= 1", "5")
    assert rows["loss.hard_joints"].text == "R, number of joints."
    assert (rows["lr"].type, rows["lr"].default) == ("float > 0", "0.001")
    assert (rows["steps"].type, rows["steps"].default) == ("int or null", "null")
    assert rows["schedule.milestones"].type == "list of int"
    assert (rows["runs"].type, rows["runs"].default) == ("path", "runs")
    assert "schedule.floor" in rows
    assert describe(Needy)[0].default == "required"


def _aliases(levels: int, width: int = 9) -> str:
    """Each level names the one before ``width`` times: width ** levels values."""
    lines = ["l0: &l0 [x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (_aliases(12), "with its aliases written out it holds more than 100000 values"),
        ("a: &a [*a]", "a value that holds itself"),
        ("a: " + "[" * 1500 + "]" * 1500, "nested too deep"),
        ("{a: " * 1500, "nested too deep"),
        ("a: " + "9" * 5000, "number 99999999999999999999… does not fit into 64 bits"),
        ("a: 9223372036854775808", "number 9223372036854775808 does not fit into 64 bits"),
        ("a: 1e400", "number 1e400 is too large"),
    ],
)
def test_documents_beyond_measure_are_refused_at_once(text: str, problem: str) -> None:
    """In a second; written out, the aliases would take hours on any machine."""
    began = time.process_time()
    with pytest.raises(ConfigurationError, match=rf"^mine.yaml.*: not readable YAML \(.*{re.escape(problem)}\)$"):
        read_tree(text, "mine.yaml")
    assert time.process_time() - began < 60


def test_documents_within_measure_are_read() -> None:
    tree = read_tree(_aliases(4) + "\nn: -9223372036854775808\nf: .inf\ng: 1e308", "mine.yaml")
    assert tree["l2"] == [[["x"]] * 9] * 9
    assert (tree["n"], tree["f"], tree["g"]) == (-(2**63), float("inf"), 1e308)
    assert read_tree("", "mine.yaml") == {}


def test_flatten_makes_dotted_keys() -> None:
    tree = {"a": {"b": {"c": 1}, "d": [2]}, "e": None, "f": {}}
    assert flatten(tree) == {"a.b.c": 1, "a.d": [2], "e": None, "f": {}}
