from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.pipelines.arguments import as_settings, base_tree
from efafnet.pipelines.cli import main
from efafnet.pipelines.commands import BY_NAME, COMMANDS, Command
from efafnet.platform.configuration import (
    ConfigurationError,
    apply_overrides,
    describe,
    load_preset,
    resolve,
    whole_keys,
)

ROOT = Path(__file__).resolve().parents[1]


class Depth(Settings):
    depth: int = Field(default=2, ge=1)
    """Blocks per stage, a count."""


class ToyConfig(Settings):
    """A toy."""

    source: Path
    """Where it reads, a directory."""
    out: Path = Path("out")
    """Where it writes."""
    rate: float = 0.5
    """Rate per second."""
    network: Depth = Depth(depth=3)
    """The network."""


calls: list[ToyConfig] = []


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command ``toy SOURCE OUT`` whose function records its settings."""
    module = types.ModuleType("toy_module")
    vars(module).update(ToyConfig=ToyConfig, run_toy=calls.append)
    monkeypatch.setitem(sys.modules, "toy_module", module)
    command = Command("toy", "toy_module", "ToyConfig", "run_toy", ("source", "out"), "Play.")
    monkeypatch.setitem(BY_NAME, "toy", command)
    calls.clear()
    return module


def fails(module: types.ModuleType, error: BaseException) -> None:
    def run_toy(_config: ToyConfig) -> None:
        raise error

    vars(module)["run_toy"] = run_toy


# ---- calling


@pytest.mark.usefixtures("toy")
def test_arguments_and_settings_reach_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["toy", "in/put", "./a=b", "rate=1e-3", "network.depth=5"]) == 0
    assert calls == [ToyConfig(source=tmp_path / "in/put", out=tmp_path / "a=b", rate=0.001, network=Depth(depth=5))], (
        "paths are absolute before any worker runs elsewhere"
    )


def test_settings_of_earlier_versions_are_read_as_what_they_are_called_now() -> None:
    prepare, evaluate = BY_NAME["prepare"], BY_NAME["evaluate"]
    assert as_settings(prepare, ["a.json", "engine=process"]) == ["a.json", "workers=0"]
    assert as_settings(evaluate, ["workers.distributed=false", "workers=2"]) == ["workers=0", "workers=2"]
    assert as_settings(prepare, ["engine=ray"]) == ["engine=ray"], "how many is for the user to say"


@pytest.mark.usefixtures("toy")
def test_an_argument_is_text_even_if_it_looks_like_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert main(["toy", "1e3"]) == 0
    assert calls[0].source == Path("/1e3")


def test_the_last_argument_may_be_given_often_where_the_command_says_so(
    toy: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ManyConfig(Settings):
        """Many."""

        source: Path
        """One."""
        inputs: tuple[Path, ...] = ()
        """Several."""
        out: Path = Path("out")
        """Where to."""

    vars(toy)["ManyConfig"] = ManyConfig
    command = Command(
        "many", "toy_module", "ManyConfig", "run_toy", ("source", "inputs"), "", takes_many=True, options=("out",)
    )
    monkeypatch.setitem(BY_NAME, "many", command)
    monkeypatch.chdir("/")
    assert main(["many", "a", "b", "--out", "x", "c"]) == 0
    assert main(["many", "a", "--out=y", "b"]) == 0
    assert main(["many", "a"]) == 0
    assert [(call.inputs, call.out) for call in calls] == [  # type: ignore[attr-defined]
        ((Path("/b"), Path("/c")), Path("/x")),
        ((Path("/b"),), Path("/y")),
        ((), Path("/out")),
    ]
    assert main(["many", "a", "b", "--out"]) == 2
    assert "--out needs a value: --out OUT, or out=OUT" in capsys.readouterr().err
    assert main(["many", "a", "b", "--help"]) == 0
    assert "usage: efafnet many SOURCE INPUTS… [key=value …]" in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_paths_in_a_jobs_copy_of_the_tree_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert main(["toy", "/data"]) == 0
    err = capsys.readouterr().err
    assert f"warning: out={copy}/out: in the job's copy of the tree, which Ray deletes" in err
    assert "source=" not in err


def test_the_exit_code_of_a_command_is_kept(toy: types.ModuleType) -> None:
    vars(toy)["run_toy"] = lambda _config: 1
    assert main(["toy", "x"]) == 1


@pytest.mark.usefixtures("toy")
def test_print_config_shows_what_would_run_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["toy", "--print-config", "/x", "rate=2"]) == 0
    assert calls == []
    text = capsys.readouterr().out
    assert "source: /x\n" in text
    (tmp_path / "again.yaml").write_text(text)
    assert load_preset(str(tmp_path / "again.yaml"))["rate"] == 2.0


@pytest.mark.usefixtures("toy")
def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toy", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: efafnet toy SOURCE OUT [key=value …]" in text
    assert "source  (path)  required\n    Where it reads, a directory." in text
    assert "rate  (float)  default 0.5\n    Rate per second." in text
    assert "network.depth  (int >= 1)  default 3\n    Blocks per stage, a count." in text
    assert main(["toy", "--help", "network"]) == 0
    assert "rate" not in capsys.readouterr().out


@pytest.mark.usefixtures("toy")
def test_a_key_is_found_by_its_last_part() -> None:
    assert main(["toy", "/x", "depth=7"]) == 0
    assert calls[0].network.depth == 7


def test_a_last_part_that_several_keys_have_is_refused() -> None:
    class Two(Settings):
        """Two groups."""

        first: Depth = Depth()
        """One."""
        second: Depth = Depth()
        """Another."""

    with pytest.raises(ValueError, match=r"depth=1: depth could be first\.depth, second\.depth; write one of them"):
        whole_keys(["depth=1"], Two)
    assert whole_keys(["first.depth=1", "nowhere=2"], Two) == ["first.depth=1", "nowhere=2"]


# ---- mistakes


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toi"], "there is no command 'toi'; did you mean 'toy'?"),
        (["toy"], "SOURCE is missing: efafnet toy SOURCE OUT [key=value …]; source: Where it reads, a directory."),
        (["toy", "a", "b", "c"], "unexpected argument 'c'; usage: efafnet toy SOURCE OUT [key=value …]"),
        (["toy", "a", "source=b"], "source is given twice: 'a' and as source=…; give it once"),
        (["toy", "a", "--rate=3"], "unknown option --rate=3; settings are written without dashes: rate=3"),
        (["toy", "a", "--dry-run"], "unknown option --dry-run; settings are written without dashes: dry_run=VALUE"),
        (["toy", "a", "--depth", "4"], "unknown option --depth; settings are written without dashes: network.depth=4"),
        (["toy", "a", "dry-run=true"], "dry-run=true: settings are written with underscores: dry_run=true"),
        (
            ["toy", "a", "network.no-depth=4"],
            "network.no-depth=4: settings are written with underscores: network.no_depth=4",
        ),
        (["train", "nano_test", "-f", "runs/a"], "unknown option -f; did you mean --fork runs/a"),
        (
            ["train", "--preset", "nano_test"],
            "unknown option --preset; the preset is an argument without a name: efafnet train PRESET [key=value …]",
        ),
        (["toy", "--help", "bogus"], "there is no setting or group 'bogus'; in the top level there are: source, out"),
        (["toy", "a", "network=3"], "network = 3: is a group of settings; write network.depth=…"),
        (
            ["train", "nano_test", "network=hrnet"],
            "network = 'hrnet': is a group of settings; write network.kind=hrnet",
        ),
        (
            ["train", "nano_test", "network=resnet50"],
            "network = 'resnet50': is a group of settings; write network.encoder=resnet50",
        ),
        (
            ["train", "nano_test", "input=256"],
            "input = 256: an input size is written HEIGHTxWIDTH, for example 256x192; got 256",
        ),
        (["train", "nano_test", "loss.kind=ohkn"], "loss.kind = 'ohkn': takes mse | ohkm; did you mean 'ohkm'?"),
        (["train", "nano_test", "protocol=[a]"], "protocol = ['a']: takes paper | sbn | hrnet | mmpose or null"),
        (["train"], "PRESET is missing: efafnet train PRESET [key=value …]; for example synth_nano"),
        (["toy", "a", "rat=3"], "there is no setting 'rat'; did you mean 'rate'?"),
        (["toy", "a", "rate=fast"], "rate = 'fast': takes float (Rate per second.)"),
        (["toy", "a", "network.depth=0"], "network.depth = 0: must be at least 1"),
        (
            ["toy", "a", "network.depth.x=0"],
            "network.depth is one setting (int >= 1) and holds no x; give network.depth=…",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert calls == []


def test_arguments_in_another_order_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("store/manifest.json", "run/run.json", "images/1.jpg", "labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for words, told in (
        ("train store nano_test", "store is a crop store: efafnet train nano_test data.train=store"),
        ("train store", "store is a crop store: efafnet train PRESET data.train=store"),
        ("evaluate store run", "did you mean: efafnet evaluate run store"),
        ("evaluate store nothere", "did you mean: efafnet evaluate nothere store"),
        ("evaluate nothere run", "did you mean: efafnet evaluate run nothere"),
        ("prepare images labels.json out", "did you mean: efafnet prepare labels.json images out"),
        ("predict images run", "did you mean: efafnet predict run images"),
        ("tune nano_test ohkm", "did you mean: efafnet tune ohkm nano_test"),
        ("study nano_test table_x", "did you mean: efafnet study table_x nano_test"),
    ):
        assert main(words.split()) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    for words in ("evaluate nothere store", "evaluate store store", "score labels.json nothere.json"):
        name, *arguments = words.split()
        tree, _, _ = base_tree(BY_NAME[name], arguments)
        assert list(tree.values()) == arguments


def test_no_setting_is_refused_in_pydantics_words() -> None:
    """Every setting of every command, given a group, a list and a word where it takes none."""
    foreign = re.compile(
        r"Input should|valid (dict|str|num|int)|instance of|Value error|Extra inputs|Config\b|NoneType| = None"
    )
    said: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for command in COMMANDS:
        model = command.settings()
        rows = [row for row in describe(model) if (row.key, row.type) not in seen]
        seen |= {(row.key, row.type) for row in rows}
        for row in rows:
            kinds = [row.only_with] if row.only_with and not row.key.endswith(".kind") else []
            for value in ("{q: 1}", "[a, {b: 1}]", "soso"):
                try:
                    resolve(model, apply_overrides({}, [*kinds, f"{row.key}={value}"]))
                except ConfigurationError as error:
                    said[f"{command.name} {row.key}={value}"] = str(error)
    assert {where: text for where, text in said.items() if foreign.search(text)} == {}
    assert len(said) > 600


def test_help_begins_with_what_matters_and_goes_by_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("First: what is set most") < lines.index("batch_size  (int >= 1)  default 64")
    assert lines.index("batch_size  (int >= 1)  default 64") < lines.index("optimizer: How gradients become weights.")
    keys = [
        line.split()[0] + line.partition("  with ")[2]
        for line in lines
        if re.match(r"[a-z_.]+  \(", line) and ".kind  " not in line
    ]
    assert len(keys) == len(set(keys)), "each setting once"
    assert "network.width  (int >= 4)  default 32  with network.kind=hrnet" in lines
    assert main(["help", "train", "loss"]) == 0
    assert capsys.readouterr().out.startswith("loss  (group)\n")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad\n  value"), "bad value"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (OSError(18, "Invalid cross-device link", "/x", None, "/y"), "/x: /y: Invalid cross-device link"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_a_users_error_is_one_line(
    toy: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    fails(toy, error)
    assert main(["toy", "x"]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_what_mlflow_refuses_is_one_line(toy: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.exceptions import MlflowException

    fails(toy, MlflowException("Run 'x' not found"))
    assert main(["toy", "x"]) == 2
    assert capsys.readouterr().err == "error: Run 'x' not found\n"


def test_our_own_error_keeps_its_traceback(toy: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(toy, AssertionError("ours"))
    with pytest.raises(AssertionError):
        main(["toy", "x"])
    fails(toy, ValueError("theirs"))
    monkeypatch.setenv("EFAFNET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="theirs"):
        main(["toy", "x"])


def test_a_missing_package_is_named(toy: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fails(toy, ModuleNotFoundError("No module named 'ray'", name="ray"))
    assert main(["toy", "x"]) == 2
    assert "needs the package 'ray'; install it: pip install" in capsys.readouterr().err
    fails(toy, ModuleNotFoundError("No module named 'efafnet.x'", name="efafnet.x"))
    with pytest.raises(ModuleNotFoundError):
        main(["toy", "x"])


def test_interruption_is_130(toy: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fails(toy, KeyboardInterrupt())
    assert main(["toy", "x"]) == 130
    assert capsys.readouterr().err == "warning: interrupted\n"


# ---- what Ray wraps around a worker's exception


def test_the_cause_of_a_failed_task_is_told(toy: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.exceptions import RayTaskError

    cause = ValueError("image 7 is empty")
    wrapped = RayTaskError("f", "Traceback: forty lines", cause).as_instanceof_cause()
    assert isinstance(wrapped, ValueError)
    fails(toy, wrapped)
    assert main(["toy", "x"]) == 2
    assert capsys.readouterr().err == "error: image 7 is empty\n"


def test_the_cause_of_a_failed_worker_group_is_told(toy: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    inner = RayTaskError("train", "Traceback", FileNotFoundError("store gone")).as_instanceof_cause()
    fails(toy, WorkerGroupError("Worker failed, long text", {0: inner}))
    assert main(["toy", "x"]) == 2
    assert capsys.readouterr().err == "error: store gone\n"


def test_a_bug_in_a_worker_is_not_hidden(toy: types.ModuleType) -> None:
    from ray.exceptions import RayTaskError

    fails(toy, RayTaskError("f", "Traceback", KeyError("bug")).as_instanceof_cause())
    with pytest.raises(KeyError):
        main(["toy", "x"])
