from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efafnet.platform.checkpoint import (
    CheckpointError,
    config_of,
    load_checkpoint,
    read_meta,
    restore_weights,
    save_checkpoint,
)
from efafnet.platform.storage import OutputExistsError

ROOT = Path(__file__).resolve().parents[1]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def write(path: Path, **changes: Any) -> nn.Module:
    network = small_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    parts: dict[str, Any] = {
        "weights": {"network": network.state_dict(), "ema": small_network().state_dict()},
        "state": {"optimizer": optimizer.state_dict(), "step": 7, "rng": torch.get_rng_state()},
        "config": {"lr": 0.5, "path": "a/b"},
        "meta": {"step": 7, "metrics": {"ap": 0.25, "lost": float("nan")}},
    }
    save_checkpoint(path, **(parts | changes))
    return network


def test_round_trip_is_exact(tmp_path: Path) -> None:
    network = write(tmp_path / "c")
    again = load_checkpoint(tmp_path / "c")
    assert set(again.weights) == {"network", "ema"}
    for name, value in network.state_dict().items():
        assert torch.equal(again.weights["network"][name], value), name
        assert again.weights["network"][name].dtype == value.dtype
    assert again.config == {"lr": 0.5, "path": "a/b"}
    assert again.meta == {"step": 7, "metrics": {"ap": 0.25, "lost": None}}
    assert torch.equal(again.state["rng"], torch.get_rng_state())
    optimizer = torch.optim.Adam(small_network().parameters(), lr=0.1)
    optimizer.load_state_dict(again.state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert config_of(tmp_path / "c") == again.config


def test_nothing_in_it_is_a_pickled_object(tmp_path: Path) -> None:
    write(tmp_path / "c")
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert files == ["config.json", "ema.safetensors", "meta.json", "network.safetensors", "state.pt"]
    torch.load(tmp_path / "c" / "state.pt", weights_only=True)
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    assert meta["format_version"] == 1
    assert sorted(meta["files"]) == ["config.json", "ema.safetensors", "network.safetensors", "state.pt"]


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_all_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "c")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "c").iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_what_cannot_be_read_back_is_refused_when_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['where'\]\[0\] is a PosixPath"):
        write(tmp_path / "c", state={"where": [tmp_path]})
    assert not (tmp_path / "c").exists()


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    write(tmp_path / "c", weights={"network": {"a": shared, "b": shared, "view": shared.T}})
    weights = load_checkpoint(tmp_path / "c").weights["network"]
    assert torch.equal(weights["b"], shared)
    assert torch.equal(weights["view"], shared.T)


def test_evaluation_need_not_read_the_optimizer(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c" / "state.pt").write_bytes(b"gone")
    assert load_checkpoint(tmp_path / "c", with_state=False).state == {}
    with pytest.raises(CheckpointError, match=r"torn: state\.pt is not what was written; take an earlier one"):
        load_checkpoint(tmp_path / "c")


def test_existing_checkpoint_is_kept_unless_told(tmp_path: Path) -> None:
    write(tmp_path / "c")
    with pytest.raises(OutputExistsError):
        write(tmp_path / "c", meta={"step": 8})
    assert read_meta(tmp_path / "c")["step"] == 7
    write(tmp_path / "c", meta={"step": 8}, overwrite=True)
    assert read_meta(tmp_path / "c")["step"] == 8


def damage(folder: Path, how: str) -> None:
    weights, meta = folder / "network.safetensors", folder / "meta.json"
    if how == "flipped bit":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "missing weights":
        weights.unlink()
    elif how == "half meta":
        meta.write_text(meta.read_text()[:30])
    elif how == "no meta":
        meta.unlink()
    elif how == "foreign":
        meta.write_text("{}")
    else:
        content_9 = json.loads(meta.read_text()) | {"format_version": 9}
        del content_9["sha256"]
        meta.write_text(json.dumps(content_9))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped bit", "torn: network.safetensors is not what was written"),
        ("truncated", "torn: network.safetensors is not what was written"),
        ("missing weights", "torn: network.safetensors is missing"),
        ("half meta", "is torn: .*meta.json is not valid JSON"),
        ("no meta", "is no checkpoint: it holds no meta.json"),
        ("foreign", "does not describe a checkpoint of this project"),
        ("version", "has format version 9, this program reads 1; use the version"),
    ],
)
def test_damage_is_named(tmp_path: Path, how: str, message: str) -> None:
    write(tmp_path / "c")
    damage(tmp_path / "c", how)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c")


def test_absent_checkpoint_and_its_parent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/none does not exist"):
        load_checkpoint(tmp_path / "none")
    write(tmp_path / "run" / "step-7")
    with pytest.raises(CheckpointError, match=r"is no checkpoint: .*it holds checkpoints: step-7"):
        load_checkpoint(tmp_path / "run")


def test_a_malicious_state_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (exec, ("open('exploded', 'w')",))

    write(tmp_path / "c")
    state = tmp_path / "c" / "state.pt"
    torch.save({"a": Bomb()}, state, pickle_module=pickle)
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    from efafnet.platform.storage import sha256_file

    meta["files"]["state.pt"] = sha256_file(state)
    del meta["sha256"]
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta))
    # And never torch's advice to load it with weights_only=False.
    with pytest.raises(
        CheckpointError, match=r"cannot be read \(.*GLOBAL \S*exec was not an allowed global\); take an earlier"
    ):
        load_checkpoint(tmp_path / "c")
    assert not Path("exploded").exists()


def test_weights_of_another_network_change_nothing() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).state_dict() | {"x": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        restore_weights(network, other, "checkpoint c")
    message = str(caught.value)
    # Of the 9 tensors, the last convolution's 2 are missing; all but the scalar counter differ in shape.
    assert "checkpoint c holds the weights of another network: 2 missing (first: 2.weight)" in message
    assert "1 unknown (first: x)" in message
    assert "6 of another shape (first: 0.weight (5, 3, 3, 3) instead of (4, 3, 3, 3)) of 9 tensors" in message
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_are_restored() -> None:
    network, other = small_network(), small_network()
    with torch.no_grad():
        other[0].weight.add_(1)  # type: ignore[index]
    restore_weights(network, other.state_dict(), "memory")
    assert torch.equal(network.state_dict()["0.weight"], other.state_dict()["0.weight"])


def test_a_kill_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "step-1")
    program = textwrap.dedent("""
        import os, sys, pathlib, torch
        from efafnet.platform import checkpoint
        checkpoint.write_json = lambda *_: os.kill(os.getpid(), 9)
        checkpoint.save_checkpoint(pathlib.Path(sys.argv[1]), weights={"network": {"a": torch.zeros(3)}},
                                   state={}, config={}, meta={})
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "step-2")], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "step-2").exists()
    assert load_checkpoint(tmp_path / "step-1").meta["step"] == 7
