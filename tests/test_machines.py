"""The machines that test_nodes.py runs on: what they share and what they do not, and that nothing of them stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT_S

SCRIPT = Path(__file__).resolve().parent / "machines.sh"
TOOLS = ("unshare", "ip", "ssh", "ssh-keygen", "rsync", "hostname", "/usr/sbin/sshd")


def machines(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *words], env=env, capture_output=True, text=True, check=False, timeout=LIMIT_S)


@pytest.mark.parametrize("words", [(), ("0", "true"), ("two", "true"), ("9", "true")])
def test_how_it_is_called(words: tuple[str, ...]) -> None:
    done = machines(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("machines.sh: usage: machines.sh N COMMAND")


def test_power_is_a_matter_of_pretended_machines() -> None:
    done = machines("on", "1")
    assert (done.returncode, done.stderr) == (2, "machines.sh: on and off work within machines.sh N COMMAND\n")


def may_pretend() -> bool:
    if any(SCRIPT.is_relative_to(own) for own in ("/tmp", "/run")):
        return False
    if os.getuid() != 0 or not all(shutil.which(tool) for tool in TOOLS):
        return False
    return subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False).returncode == 0


LOOK = r"""
# Who has just heard from a machine goes on calling it for two minutes after its power has gone.
on() {
  ssh -q -o ConnectTimeout=10 -i ~/.ssh/id_ed25519 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    efafnet@10.77.0.1"$@"
}
for i in 1 2; do
  on $i 'hostname; echo ~; tr "\0" " " < /proc/1/cmdline | grep -o -- "--boot ."; ls /tmp; ip route | cut -d" " -f 1-3'
  on $i "test -e $PWD/Makefile && echo not blind; touch /tmp/own /etc/own ~/efafnet-env/own /mnt/efafnet/seen-by-$i"
done
ls /mnt/efafnet
"$0" off 2; on 2 true; echo off $?
"$0" on 2; on 2 'for name in /etc/own /tmp/own ~/efafnet-env/own; do test -e $name && echo $name; done'
"""


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.skipif(
    not may_pretend(),
    reason="needs root, namespaces, iproute2, rsync, an OpenSSH server, and a checkout that is not in /tmp or /run",
)
def test_machines_are_apart_but_for_the_shared_file_system() -> None:
    before = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout
    done = machines("2", "bash", "-c", LOOK, str(SCRIPT))
    assert done.stdout.splitlines() == [
        *("node-1", "/home/efafnet", "--boot 1", "10.77.0.0/24 dev eth0"),
        *("node-2", "/home/efafnet", "--boot 2", "10.77.0.0/24 dev eth0"),
        *("seen-by-1", "seen-by-2", "off 255"),
        *("/etc/own", "/home/efafnet/efafnet-env/own"),
    ], done.stderr
    after = subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout
    assert after == before
    for trace in ("/run/machines", "/mnt/efafnet/seen-by-1", "/etc/own", "/tmp/own", f"{sys.prefix}/own"):
        assert not Path(trace).exists()
