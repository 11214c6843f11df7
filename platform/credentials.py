"""Names and passwords in addresses: cut from all that is written or shown, and put back where an address is opened.

They are kept in the environment of this process, which its children inherit (a Ray that it starts among them). Workers
of a cluster that it joins ask the cluster's own memory for them; Ray's ``runtime_env`` would show them on the dashboard
and in every node's logs.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

_KEPT = "EFAFNET_ADDRESSES"
_asked: list[bool] = []
# Not empty once the cluster was asked: what a driver leaves is there before its workers are.
_MLFLOW = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_PASSWORDS_IN_QUERY = ("password", "sslpassword")
_NAMES_IN_QUERY = ("user", *_PASSWORDS_IN_QUERY)
"""What databases take behind the question mark too: ``postgresql://HOST/NAME?user=ME&password=…``."""


def bare(address: str) -> str:
    """Return ``address`` without name and password, which are kept for :func:`full`.

    Those of an http address become MLflow's own variables, because MLflow cannot use them otherwise.
    """
    parts = urlsplit(address) if "://" in address else None
    if parts is None or not ("@" in parts.netloc or _in_query(parts)):
        return address
    user, _, place = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    if parts.scheme in ("http", "https"):
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        return urlunsplit(parts._replace(netloc=place))
    if not colon and not _in_query(parts):
        return address  # a name alone is no secret
    rest = "&".join(pair for pair in parts.query.split("&") if pair.partition("=")[0] not in _NAMES_IN_QUERY)
    cut = urlunsplit(parts._replace(netloc=place, query=rest))
    os.environ[_KEPT] = json.dumps({**_kept(), cut: address})
    return cut


def _in_query(parts: SplitResult) -> list[str]:
    """The passwords behind the question mark of an address, as they are written there."""
    pairs = (pair.partition("=") for pair in parts.query.split("&"))
    return [value for key, _, value in pairs if key in _PASSWORDS_IN_QUERY and not parts.scheme.startswith("http")]


def full(address: str) -> str:
    """Return ``address`` with the name and password it was given with, to open it; never to be shown."""
    for known, given in _kept().items():
        if address == known or address.startswith(f"{known.rstrip('/')}/"):
            return given.rstrip("/") + address.removeprefix(known.rstrip("/"))
    return address


def hidden(text: str) -> str:
    """Return ``text`` without the passwords that are known here: libraries quote addresses in their errors."""
    kept: dict[str, str] = json.loads(os.environ.get(_KEPT, "{}"))
    parts = [urlsplit(given) for given in kept.values()]
    passwords = [secret for each in parts for secret in (each.password, *_in_query(each)) if secret]
    for secret in (*passwords, *(unquote(each) for each in passwords)):
        text = text.replace(secret, "***")
    return text


def take_from_cluster() -> None:
    """In a worker of Ray: take over what the driver left for it, unless the node's own environment has it."""
    ray = sys.modules.get("ray")
    if _asked or ray is None or not ray.is_initialized():
        return
    _asked.append(True)
    from efafnet.platform.ray_private import left_for_workers

    for name, value in json.loads(left_for_workers() or "{}").items():
        os.environ.setdefault(name, value)


def leave_in_cluster() -> None:
    """In a driver: leave name, password, token and addresses for its workers, in the cluster's memory."""
    from efafnet.platform.ray_private import leave_for_workers

    found = {name: os.environ[name] for name in (*_MLFLOW, _KEPT) if name in os.environ}
    if found:
        leave_for_workers(json.dumps(found))


def _kept() -> dict[str, str]:
    if _KEPT not in os.environ:
        take_from_cluster()
    kept: dict[str, str] = json.loads(os.environ.get(_KEPT, "{}"))
    return kept
