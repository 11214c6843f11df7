"""Checkpoints: a directory of safetensors weights, a weights-only state, the configuration and a description.

Nothing in it is a pickled object: it can be opened by later versions, by other tools, and without trusting its author.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from efafnet.platform.presence import is_there, read_bytes
from efafnet.platform.storage import (
    UnwritableError,
    atomic_directory,
    read_sealed,
    sha256_bytes,
    sha256_file,
    write_json,
    write_sealed,
)

FORMAT_VERSION = 1
_WEIGHTS_SUFFIX = ".safetensors"
_STATE = "state.pt"
_CONFIG = "config.json"
_META = "meta.json"
_RESERVED = ("format", "format_version", "files", "sha256")
_FORMAT = "efafnet-checkpoint"


class CheckpointError(ValueError):
    """A checkpoint that is absent, torn, of another version, or of another network than the one it is loaded into.

    What could not be read says nothing of this kind: that is an OSError.
    """


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory holds."""

    weights: dict[str, dict[str, Tensor]]
    """Named sets of tensors on the CPU, for example ``network`` and ``ema``."""
    state: dict[str, Any]
    """Whatever else is needed to go on: optimizer, scheduler, position. Empty when it was not asked for."""
    config: dict[str, Any]
    """The resolved configuration of the run that wrote it."""
    meta: dict[str, Any]
    """What the writer says about it: step, epoch, metrics, skeleton, …"""


def save_checkpoint(
    directory: Path,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    meta: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write a checkpoint that is either whole or absent.

    Args:
        directory: where; must not exist or be empty, unless ``overwrite``.
        weights: named sets of tensors, each becomes ``NAME.safetensors``.
        state: plain values and tensors only (what ``torch.load(weights_only=True)`` accepts).
        config: JSON-able configuration.
        meta: JSON-able description; NaN and infinities become null.
        overwrite: replace what is there.

    Raises:
        OutputExistsError: something is there already.
        UnwritableError: the place cannot be written, or is full.
    """
    assert not set(meta) & set(_RESERVED), f"{_RESERVED} are written by the checkpoint itself"
    _require_plain(state, "state")
    with _full_disk_named(directory), atomic_directory(directory, overwrite=overwrite) as folder:
        for name, tensors in weights.items():
            # A copy, because tensors that share storage (tied weights, views of one buffer) cannot be stored as such.
            plain = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
            file = folder / f"{name}{_WEIGHTS_SUFFIX}"
            save_file(plain, file)
            # safetensors makes files that only their owner may read; others follow the umask, as the directory did.
            file.chmod(folder.stat().st_mode & 0o666)
        torch.save(dict(state), folder / _STATE)
        write_json(folder / _CONFIG, dict(config))
        files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        header = {"format": _FORMAT, "format_version": FORMAT_VERSION, "files": files}
        write_sealed(folder / _META, {**header, **meta})


@contextmanager
def _full_disk_named(directory: Path) -> Iterator[None]:
    """Make of what safetensors and torch say of a write that failed an error of the system, as other writers raise."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UnwritableError(f"cannot write checkpoint {directory}: {reason}; is the disk full?") from error


def load_checkpoint(directory: Path, *, with_state: bool = True) -> Checkpoint:
    """Read a checkpoint onto the CPU and check that every byte is what was written.

    Each file is read once: what is parsed are the very bytes whose digest was checked.

    Args:
        directory: the checkpoint.
        with_state: also read the optimizer's state (evaluation needs none and saves the time).

    Raises:
        CheckpointError: absent, not a checkpoint, torn, or written by another version.
        OSError: the file system does not let it be read at present; the checkpoint may be whole.
    """
    directory = Path(directory)
    meta = read_meta(directory)
    files: dict[str, str] = meta["files"]
    wanted = [name for name in files if with_state or name != _STATE]
    config = _parsed(directory / _CONFIG, _read_verified(directory, _CONFIG, files))
    weights: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    try:
        for name in wanted:
            if name.endswith(_WEIGHTS_SUFFIX):
                weights[name.removesuffix(_WEIGHTS_SUFFIX)] = load(_read_verified(directory, name, files))
            elif name == _STATE:
                content = io.BytesIO(_read_verified(directory, name, files))
                state = torch.load(content, map_location="cpu", weights_only=True)
            elif name != _CONFIG:
                _read_verified(directory, name, files)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own advice is to allow what was found, or to load it with weights_only=False, which runs it.
        reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error) or type(error).__name__
        reason = reason.partition(" by default. Please use ")[0].splitlines()[0]
        raise CheckpointError(f"checkpoint {directory} cannot be read ({reason}); take an earlier one") from error
    return Checkpoint(weights, state, config, {key: item for key, item in meta.items() if key not in _RESERVED})


def read_meta(directory: Path) -> dict[str, Any]:
    """Return a checkpoint's whole ``meta.json`` without reading its tensors.

    Raises:
        CheckpointError: absent, not a checkpoint, torn, or written by another version.
        OSError: it is there and cannot be read.
    """
    path = Path(directory) / _META
    if not is_there(path):
        inside = sorted(entry.parent.name for entry in Path(directory).glob(f"*/{_META}"))[-3:]
        hint = f"; it holds checkpoints: {', '.join(inside)}" if inside else ""
        reason = "does not exist" if not is_there(Path(directory)) else f"is no checkpoint: it holds no {_META}{hint}"
        raise CheckpointError(f"checkpoint {directory} {reason}; name the directory that holds {_META}")
    try:
        meta = read_sealed(path)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {directory} is torn: {error}; take an earlier one") from error
    if meta.get("format") != _FORMAT:
        raise CheckpointError(f"{path} does not describe a checkpoint of this project; name a checkpoint or a run")
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {directory} has format version {meta.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; use the version of efafnet that wrote it"
        )
    files = meta.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError(f"checkpoint {directory} is torn: {_META} lists no files; take an earlier one")
    if missing := [name for name in (_CONFIG, _STATE) if name not in files]:
        raise CheckpointError(f"checkpoint {directory} is torn: {_META} lists no {missing[0]}; take an earlier one")
    return meta


def amend_meta(directory: Path, entries: Mapping[str, Any]) -> None:
    """Add ``entries`` to what a checkpoint says about itself, in one step; everything else stays as it is.

    Raises:
        CheckpointError: as :func:`read_meta`.
        OSError: it cannot be read, or not be written.
    """
    assert not set(entries) & set(_RESERVED), f"{_RESERVED} are written by the checkpoint itself"
    write_sealed(Path(directory) / _META, {**read_meta(directory), **entries})


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"checkpoint {path.parent} is torn: {path} is not valid JSON ({error}); take an earlier one"
        ) from error


def _read_verified(directory: Path, name: str, files: Mapping[str, str]) -> bytes:
    """The content of one file, if it is what was written."""
    path = directory / name
    if not is_there(path):
        raise CheckpointError(f"checkpoint {directory} is torn: {name} is missing; take an earlier one")
    content = read_bytes(path)
    if sha256_bytes(content) != files[name]:
        raise CheckpointError(f"checkpoint {directory} is torn: {name} is not what was written; take an earlier one")
    return content


def restore_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Copy ``tensors`` into ``module``, all of them or none.

    Args:
        module: receives the weights.
        tensors: names and values, as saved from a module of the same configuration.
        source: where they come from, for the error.

    Raises:
        CheckpointError: the names or shapes belong to another network; says how many and shows the first.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors]
    foreign = [name for name in tensors if name not in own]
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    kinds = (("missing", missing), ("unknown", foreign), ("of another shape", reshaped))
    faults = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds if names]
    if faults:
        raise CheckpointError(
            f"{source} holds the weights of another network: {', '.join(faults)} of {len(own)} tensors; "
            "build the network from the checkpoint's own configuration"
        )
    module.load_state_dict(dict(tensors))


def _require_plain(value: Any, where: str) -> None:
    """Refuse, while the culprit is known, what could be written but not be read back without unpickling objects."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif not (value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor)):
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint's state holds plain values and tensors only"
        )


def config_of(directory: Path) -> dict[str, Any]:
    """Return the configuration a checkpoint was written under, without reading its tensors.

    Raises:
        CheckpointError: absent, torn, or of another version.
        OSError: it is there and cannot be read.
    """
    directory = Path(directory)
    meta = read_meta(directory)
    config: dict[str, Any] = _parsed(directory / _CONFIG, _read_verified(directory, _CONFIG, meta["files"]))
    return config
