"""Machines that Ray's autoscaler starts and ends on this one, each with a directory of its own, as real ones have.

Imported by the autoscaler's process by this module's name alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class PretendedMachines(FakeMultiNodeProvider):
    """Ray's own, whose machines would all share the head's directory: each new one would there remove and unpack again
    the code that processes of the others are importing at that moment.

    ``provider.place`` in the cluster's settings is a directory for those of the machines; a short one, for sockets with
    long names are in it.
    """

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            place = Path(self.provider_config["place"]) / str(self._next_node_id + 1)
            own = functools.partial(ray._private.parameter.RayParams, temp_dir=str(place))
            with mock.patch.object(ray._private.parameter, "RayParams", own):
                super()._create_node_with_resources_and_labels(*arguments)  # type: ignore[no-untyped-call]
