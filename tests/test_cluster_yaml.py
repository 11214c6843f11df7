"""The AWS cluster file: Ray accepts it, and it keeps our own rules. Checked without an account or a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy_cases import DEPLOY, ROOT, check_mounts, check_shell, cluster_file, commands, oldest_python, pins, the
from tests.waiting import LIMIT_S, wait_for

PREPARE = DEPLOY / "aws_prepare.sh"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    config = cluster_file(ROOT / "cluster.yaml")
    assert config["cluster_name"] == written["cluster_name"]
    return config


def test_the_head_has_no_gpu_and_workers_are_spot_machines_from_zero(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    head = types.pop(prepared["head_node_type"])
    assert "GPU" not in head["resources"]
    assert re.match(r"[cmrt]\d", head["node_config"]["InstanceType"]), "families without GPUs"
    assert head["max_workers"] == 0
    for name, worker in types.items():
        assert worker["min_workers"] == 0, name
        assert worker["max_workers"] > 0
        assert worker["resources"]["GPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    types[prepared["head_node_type"]] = head
    assert 0 < prepared["idle_timeout_minutes"] <= 30
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_ray_is_the_pinned_one_everywhere(prepared: dict[str, Any]) -> None:
    for key in ("head_image", "worker_image"):
        found = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)(-gpu)?", prepared["docker"][key])
        assert found is not None, prepared["docker"][key]
        assert found[1] == pins()["ray"]
        assert (int(found[2]), int(found[3])) >= oldest_python()
        assert bool(found[4]) == (key == "worker_image")
    text = str(commands(prepared))
    for trap in ("ray-wheels", "dev0", "anaconda3", "latest"):
        assert trap not in text, f"Ray's default setup crept in: {trap}"


def test_the_project_is_installed_with_its_pins(prepared: dict[str, Any]) -> None:
    for key in ("head_setup_commands", "worker_setup_commands"):
        assert any("pip install" in line and "-c /tmp/efafnet/constraints.txt" in line for line in prepared[key])
    check_mounts(prepared)


def test_every_node_demands_the_token(prepared: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = the("ray start", prepared[key])
        before, _, _ = start.partition("ray start")
        assert re.search(r"export [^;]*RAY_AUTH_MODE=token", before), start


def test_nothing_is_open_to_the_world(prepared: dict[str, Any]) -> None:
    # A group that Ray makes opens port 22 to 0.0.0.0/0 whatever `security_group` says, so every type must name one.
    for name, node in prepared["available_node_types"].items():
        groups = node["node_config"].get("SecurityGroupIds")
        assert groups, f"node type {name} leaves its security group to Ray"
        assert all(group.startswith("sg-") for group in groups)
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])
    assert "security_group" not in prepared["provider"]
    assert "0.0.0.0/0" not in str(prepared)
    start = the("ray start", prepared["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "--ray-client-server-port" not in start


def test_mlflow_runs_on_the_head_and_every_node_knows_it(prepared: dict[str, Any]) -> None:
    server = the("mlflow server", prepared["head_start_ray_commands"])
    assert "--serve-artifacts" in server, "workers then need nothing but its address"
    assert "--allowed-hosts" in server, "MLflow answers 403 to a host name it was not told"
    assert "/health" in server, "a second `ray up` must not start a second server"
    assert "/mnt/efafnet/" in server, "the store must outlive the container"
    head = the("ray start", prepared["head_start_ray_commands"])
    worker = the("ray start", prepared["worker_start_ray_commands"])
    assert "MLFLOW_TRACKING_URI=http://$(hostname -I | cut -d' ' -f1):5000" in head.partition("ray start")[0]
    assert "MLFLOW_TRACKING_URI=http://$RAY_HEAD_IP:5000" in worker.partition("ray start")[0]
    assert "--volume /mnt/efafnet:/mnt/efafnet" in prepared["docker"]["run_options"]


def test_mlflow_is_started_again_when_it_dies(tmp_path: Path) -> None:
    """The command itself, with a server that dies at once: a second one follows, and a second `ray up` starts none."""
    for name in ("cluster.yaml", "platform/deploy/onpremise.yaml"):
        line = the("mlflow server", cluster_file(ROOT / name)["head_start_ray_commands"])
        place = tmp_path / Path(name).stem
        place.mkdir()
        for program, text in (("mlflow", 'echo "$*" >> $HOME/starts'), ("curl", "exit 7"), ("setsid", 'exec "$@"')):
            (place / program).write_text(f"#!/bin/bash\n{text}\n")
            (place / program).chmod(0o755)
        (place / "head_ip").write_text("192.0.2.10\n")
        (place / "sleep").write_text('#!/bin/bash\n[ "$(wc -l < $HOME/starts)" -lt 3 ] || kill -9 $PPID\n')
        (place / "sleep").chmod(0o755)
        env = {"HOME": str(place), "PATH": f"{place}:/usr/bin:/bin"}
        begun = place / "starts"
        subprocess.run(["bash", "-c", line], env=env, check=True, timeout=LIMIT_S)
        wait_for("third start", lambda begun=begun: begun.exists() and len(begun.read_text().splitlines()) >= 3)  # type: ignore[misc]
        starts = begun.read_text().splitlines()
        assert len(set(starts)) == 1
        assert "--serve-artifacts" in starts[0]
        assert "*" in starts[0].partition("--allowed-hosts ")[2].split()[0]


def test_spot_workers_are_watched(prepared: dict[str, Any]) -> None:
    watch = the("efafnet.platform.notice watch", prepared["worker_start_ray_commands"])
    assert "setsid nohup" in watch, "it outlives the connection that started it"
    assert watch == prepared["worker_start_ray_commands"][-1], "when the node is there"
    for node in prepared["available_node_types"].values():
        # Ray's containers share the machine's network, so one hop reaches the metadata service.
        assert node["node_config"]["MetadataOptions"]["HttpPutResponseHopLimit"] == 1


def test_an_image_of_the_same_state_installs_nothing(prepared: dict[str, Any], tmp_path: Path) -> None:
    line = the("pip install", prepared["worker_setup_commands"]).replace("/tmp/efafnet", str(tmp_path / "build"))
    for folder in ("efafnet", "efafnet-image"):
        (tmp_path / folder).mkdir()
        for name in ("constraints.txt", "pyproject.toml"):
            (tmp_path / folder / name).write_text(name)
    (tmp_path / "pip").write_text("#!/bin/sh\necho installed\n")
    (tmp_path / "pip").chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}

    def output() -> str:
        return subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=True).stdout

    assert output() == ""
    (tmp_path / "efafnet" / "constraints.txt").write_text("another torch")
    assert output() == "installed\n"
    shutil.rmtree(tmp_path / "efafnet-image")
    assert output() == "installed\n"
    assert "~/efafnet-image" in (DEPLOY / "Dockerfile").read_text()


def test_workers_join_the_heads_port(prepared: dict[str, Any]) -> None:
    head = the("ray start", prepared["head_start_ray_commands"])
    worker = the("ray start", prepared["worker_start_ray_commands"])
    [port] = re.findall(r" --port=(\d+)", head)
    assert f'--address="$RAY_HEAD_IP:{port}"' in worker
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_every_command_is_shell(prepared: dict[str, Any]) -> None:
    for lines in commands(prepared).values():
        for line in lines:
            check_shell(line)


# ---- the script that fills it in, against a stand-in for the `aws` program

STAND_IN = """#!/usr/bin/env bash
echo "$*" | tr '\\n' ' ' >> "$LOG"; echo >> "$LOG"
case "$1 $2" in
  'ec2 describe-vpcs') echo vpc-1 ;;
  'ec2 describe-security-groups')
    case "$*" in *Name=group-name*) echo "$GROUP" ;; *UserIdGroupPairs*) echo "$MEMBERS" ;; *) echo "$HOMES" ;; esac ;;
  'ec2 create-security-group') echo sg-new ;;
  'efs describe-file-systems')
    case "$*" in *LifeCycleState*) echo available ;; *ThroughputMode*) echo "$MODE" ;; *) echo "$FILES" ;; esac ;;
  'efs create-file-system') echo fs-new ;;
  'efs describe-mount-targets')
    case "$*" in *LifeCycleState*) [ "$(grep -c MountTargets.*LifeCycle "$LOG")" -gt 1 ] || printf 'creating\\t'
      echo available ;; *) echo "$MOUNTED" ;; esac ;;
  'ec2 describe-subnets') printf 'subnet-a\\tsubnet-b\\n' ;;
  'ssm get-parameter') echo ami-newest ;;
  'sts get-caller-identity') echo 123456789012 ;;
  'iam get-role') [ -n "$ROLES" ] ;;
  'iam get-instance-profile') [ -n "$ROLES" ] && echo "$4" ;;
esac
"""
EMPTY = {"GROUP": "None", "HOMES": "", "MEMBERS": "", "FILES": "None", "MODE": "", "MOUNTED": "", "ROLES": ""}
DONE = {"GROUP": "sg-old", "HOMES": "203.0.113.7/32", "MEMBERS": "sg-old", "FILES": "fs-old", "MODE": "elastic",
        "MOUNTED": "subnet-b\tsubnet-a", "ROLES": "yes"}  # fmt: skip
CHANGES = ("create", "authorize", "revoke", "update", "add-role")


def prepare(folder: Path, *arguments: str, **state: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    (folder / "aws").write_text(STAND_IN)
    (folder / "aws").chmod(0o755)
    (folder / "sleep").write_text("#!/bin/sh\n")
    (folder / "sleep").chmod(0o755)
    (folder / "log").write_text("")
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log"), **EMPTY, **state}
    done = subprocess.run([PREPARE, *arguments], env=env, capture_output=True, text=True, check=False)
    return done, (folder / "log").read_text().splitlines()


def test_the_script_fills_in_a_new_account(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    done, calls = prepare(tmp_path, "eu-central-1", "203.0.113.7/32")
    assert done.returncode == 0, done.stderr
    assert "REPLACE" not in re.sub(r"^#.*", "", done.stdout, flags=re.MULTILINE)
    config = yaml.safe_load(done.stdout)
    validate_config(prepare_config(yaml.safe_load(done.stdout)))
    assert config["provider"]["region"] == "eu-central-1"
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == ["sg-new"]
        assert node["node_config"]["ImageId"] == "ami-newest"
    assert "fs-new.efs.eu-central-1.amazonaws.com:/" in str(config["initialization_commands"])
    rules = [call for call in calls if "authorize" in call]
    assert [("22 --cidr 203.0.113.7/32" in rule, "--source-group sg-new" in rule) for rule in rules] == [
        (True, False),
        (False, True),
    ]
    assert [call.split("subnet-id ")[1].split()[0] for call in calls if "create-mount-target" in call] == [
        "subnet-a",
        "subnet-b",
    ]
    assert sum("MountTargets[].LifeCycleState" in call for call in calls) == 2, "waited for"
    [file_system] = [call for call in calls if "create-file-system" in call]
    assert "--throughput-mode elastic" in file_system
    assert "--encrypted" in file_system
    for name in ("efafnet-head", "efafnet-worker"):
        [policy] = [call for call in calls if f"put-role-policy --role-name {name} " in call]
        statements = json.loads(policy.partition("--policy-document ")[2])["Statement"]
        assert "s3:GetObject" in statements[0]["Action"]
        handed = [s["Resource"] for s in statements if s["Action"] == "iam:PassRole"]
        assert handed == (["arn:aws:iam::123456789012:role/efafnet-worker"] if name == "efafnet-head" else [])
        assert f"iam add-role-to-instance-profile --instance-profile-name {name} --role-name {name} " in calls
    used = {node["node_config"]["IamInstanceProfile"]["Name"] for node in config["available_node_types"].values()}
    assert used == {"efafnet-head", "efafnet-worker"}
    assert any("create-service-linked-role --aws-service-name spot.amazonaws.com" in call for call in calls)


def test_the_script_uses_what_is_there(tmp_path: Path) -> None:
    done, calls = prepare(tmp_path, "us-east-1", "203.0.113.7/32", **DONE)
    assert done.returncode == 0, done.stderr
    assert not [call for call in calls if any(word in call for word in CHANGES)]
    assert "sg-old" in done.stdout
    assert "fs-old" in done.stdout


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (
            {"HOMES": "198.51.100.1/32"},
            ["authorize-security-group-ingress --group-id sg-old --protocol tcp --port 22 --cidr 203.0.113.7/32",
             "revoke-security-group-ingress --group-id sg-old --protocol tcp --port 22 --cidr 198.51.100.1/32"],
        ),
        (
            {"HOMES": "", "MEMBERS": ""},
            ["authorize-security-group-ingress --group-id sg-old --protocol tcp --port 22 --cidr 203.0.113.7/32",
             "authorize-security-group-ingress --group-id sg-old --protocol all --source-group sg-old"],
        ),
        ({"MODE": "bursting"}, ["update-file-system --file-system-id fs-old --throughput-mode elastic"]),
        ({"MOUNTED": "subnet-b"}, ["create-mount-target --file-system-id fs-old --subnet-id subnet-a "
                                   "--security-groups sg-old"]),
    ],
    ids=["a new home address", "died before the rules", "a file system of before", "died between the subnets"],
)  # fmt: skip
def test_the_script_mends_what_is_there(tmp_path: Path, state: dict[str, str], changes: list[str]) -> None:
    done, calls = prepare(tmp_path, "us-east-1", "203.0.113.7/32", **DONE | state)
    assert done.returncode == 0, done.stderr
    made = [call.split(" ", 1)[1].strip() for call in calls if any(word in call for word in CHANGES)]
    assert made == changes


@pytest.mark.parametrize(
    "cidr", ["0.0.0.0/0", "0.0.0.0/1", "203.0.113.7", "1.2.3.4/99", "1.2.3.400/32", "1.2.3.4/15", "everyone", ""]
)
def test_the_script_refuses_the_world(tmp_path: Path, cidr: str) -> None:
    done, calls = prepare(tmp_path, "us-east-1", cidr)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert calls == []
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "remark"), [("ray start --address=$RAY_HEAD_IP:6379", "SC2086"), ("(ray stop", "stop")]
)
def test_shell_that_is_not_clean_is_found(line: str, remark: str) -> None:
    with pytest.raises(AssertionError, match=remark):
        check_shell(line)


def test_every_script_is_among_those_that_lint_checks() -> None:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    scripts = [name for name in listed if (ROOT / name).is_file() and _is_script(ROOT / name)]
    assert f".venv/bin/shellcheck {' '.join(scripts)}\n" in (ROOT / "Makefile").read_text()


def _is_script(file: Path) -> bool:
    with file.open("rb") as opened:
        first = opened.readline(64)
    return first.startswith(b"#!") and first.rstrip().endswith(b"sh")
