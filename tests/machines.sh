#!/usr/bin/env bash
# Pretends to be several machines on one network, and runs a command on one of them.
#
#   tests/machines.sh N COMMAND…     COMMAND runs on the operator's machine, 10.77.0.1, beside node-1 (10.77.0.11) to node-N
#   tests/machines.sh off I          within COMMAND: node-I loses its power: its cable is dead first, so nobody is told
#   tests/machines.sh on I           within COMMAND: it boots again, with the disk it had
#
# Each machine has its own network, processes, mounts, host name, shared memory, /tmp, /etc, /home and sshd; all share the
# file system /mnt/efafnet. The operator logs in as efafnet@10.77.0.1I with ~/.ssh/id_ed25519. The Python environment of
# this checkout (or of PYTHON) lies under ~/efafnet-env of every node as a layer of its own: what is installed on a node
# stays there. The checkout itself is hidden from the nodes, as it would be on real ones. No address beyond these is reachable.
#
# The operator's machine is a set of namespaces too. When COMMAND ends, or dies, or is killed, everything ends with it: the
# bridge, the nodes, and the memory that held their disks. Nothing is left on this machine. Root only.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
disks=/run/machines # a mount of the operator's and the nodes' namespaces only
bridge=10.77.0

fail() { echo "machines.sh: $*" >&2; exit 2; }

check() {
  [ "$(id -u)" = 0 ] || fail 'only root may make network namespaces'
  case $root/ in /tmp/* | /run/*) fail "each machine has a /tmp and a /run of its own, which hide $root: clone it elsewhere" ;; esac
  local tool missing=
  for tool in unshare ip ssh ssh-keygen rsync hostname /usr/sbin/sshd; do
    command -v "$tool" > /dev/null || missing+=" $tool"
  done
  [ -z "$missing" ] || fail "not installed:$missing (Debian: apt-get install util-linux iproute2 openssh-server rsync hostname)"
  [ -x "${PYTHON:=$root/.venv/bin/python}" ] || fail "no Python environment at $PYTHON; run make, or name one: PYTHON=…"
  unshare --net --mount --pid --fork true || fail 'this kernel, or this container, allows no new namespaces'
}

# A layer over a directory: it reads as before, what is written stays in the machine's own disk.
layer() {
  local disk=$own/layers$1
  mkdir -p "$disk/upper" "$disk/work"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$disk/upper,workdir=$disk/work" "${2:-$1}"
}

# The machine's own user: root by another name, with a home of its own, in whose name everything is found.
user() {
  layer /etc
  layer /home
  grep -q "^$1:" /etc/passwd || sed -i "1i $1:x:0:0::/home/$1:/bin/bash" /etc/passwd
  mkdir -p "/home/$1/.ssh" && chmod 700 "/home/$1" "/home/$1/.ssh"
}

share() {
  mkdir -p /mnt/efafnet
  mount --bind "$disks/shared" /mnt/efafnet
}

# ---- the operator's machine

operate() {
  hostname operator
  ip link set lo up
  ip link add lan type bridge
  ip address add $bridge.1/24 dev lan
  ip link set lan up
  mount -t tmpfs machines /run
  mkdir -p $disks/shared $disks/operator/tmp
  own=$disks/operator
  layer /mnt
  share
  mount --bind $own/tmp /tmp
  user operator
  export HOME=/home/operator MACHINES=$1
  ssh-keygen -q -t ed25519 -N '' -C operator -f $HOME/.ssh/id_ed25519
  cp $HOME/.ssh/id_ed25519.pub $disks
  ssh-keygen -q -t ed25519 -N '' -f $disks/host_key
  local node
  for node in $(seq "$1"); do power_on "$node"; done
  shift
  local rc=0
  "$@" || rc=$?
  exit $rc
}

power_on() {
  [ -d $disks/operator ] || fail 'on and off work within machines.sh N COMMAND'
  local own=$disks/node-$1
  mkdir -p "$own"
  # Of all that is open here, a node keeps only where its console goes.
  setsid unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc \
    "$0" --boot "$1" < /dev/null > "$own/console" 2>&1 &
  echo $! > "$own/pid"
  disown
  for _ in $(seq 100); do
    [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ] || break
    sleep 0.05
  done
  ip link add "port-$1" type veth peer name eth0 netns $!
  ip link set "port-$1" master lan up
  for _ in $(seq 200); do
    ssh_works "$1" && return
    sleep 0.1
  done
  cat "$own/console" >&2
  fail "node-$1 does not boot"
}

ssh_works() {
  ssh -q -i "$HOME/.ssh/id_ed25519" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o ConnectTimeout=2 efafnet@$bridge.1"$1" true 2> /dev/null
}

power_off() {
  local pid
  pid=$(cat $disks/node-"$1"/pid)
  ip link set "port-$1" down
  kill -KILL "$pid"
  while kill -0 "$pid" 2> /dev/null; do sleep 0.05; done
  ip link delete "port-$1" 2> /dev/null || true # it goes with the node's network, a little later
}

# ---- a node

boot() {
  own=$disks/node-$1
  hostname "node-$1"
  ip link set lo up
  until ip address add "$bridge.1$1/24" dev eth0 2> /dev/null; do sleep 0.05; done
  ip link set eth0 up
  local environment
  environment=$("$PYTHON" -c 'import sys; print(sys.prefix)')
  mkdir -p "$own/environment" "$own/tmp" && rm -rf "$own"/tmp/*
  layer "$environment" "$own/environment"
  mount -t tmpfs nothing "$root" # no checkout here
  mkdir -p "$environment"
  mount --bind "$own/environment" "$environment"
  layer /mnt
  share
  user efafnet
  write_files "$1" "$environment"
  mount -t tmpfs -o mode=1777 shm /dev/shm
  mount --bind "$own/tmp" /tmp
  mount -t tmpfs run /run
  mkdir /run/sshd
  # A child of the first process, which reaps orphans.
  /usr/sbin/sshd -D -e -f /etc/ssh/sshd_machines &
  wait
}

# The node's own files.
write_files() {
  # Like a freshly installed Debian: a machine's own name is a loopback address.
  printf '%s\n' '127.0.0.1 localhost' "127.0.1.1 node-$1" > /etc/hosts
  : > /etc/resolv.conf
  local home=/home/efafnet
  mkdir -p $home/.config/pip
  cp $disks/id_ed25519.pub $home/.ssh/authorized_keys
  ln -sfn "$2" $home/efafnet-env
  # There is no registry to be reached; all that is needed is in the environment already.
  printf '%s\n' '[global]' 'no-index = true' '[install]' 'no-build-isolation = false' > $home/.config/pip/pip.conf
  install -m 600 $disks/host_key /etc/ssh/machines_host_key
  printf '%s\n' "ListenAddress $bridge.1$1" 'HostKey /etc/ssh/machines_host_key' 'PermitRootLogin prohibit-password' \
    'UsePAM no' 'PasswordAuthentication no' > /etc/ssh/sshd_machines
}

case ${1:-} in
  --operate) shift; operate "$@" ;;
  --boot) boot "$2" ;;
  on) power_on "$2" ;;
  off) power_off "$2" ;;
  [1-8])
    [ $# -ge 2 ] || fail 'usage: machines.sh N COMMAND…'
    check
    export PYTHON
    exec unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc "$0" --operate "$@"
    ;;
  *) fail 'usage: machines.sh N COMMAND… with N from 1 to 8; within COMMAND also: machines.sh off I, machines.sh on I' ;;
esac
