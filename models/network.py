"""From a configuration to a network: EFAFNet and SBN, HRNet, the stacked hourglass."""

from __future__ import annotations

from typing import overload

from efafnet.models.efafnet import EFAFNet
from efafnet.models.hourglass import StackedHourglass
from efafnet.models.hrnet import HRNet
from efafnet.models.network_config import (
    AnyNetworkConfig,
    HourglassConfig,
    HRNetConfig,
    NetworkConfig,
    network_config,
)
from efafnet.models.pose_network import PoseNetwork, PoseOutput, normalise

__all__ = [
    "AnyNetworkConfig",
    "EFAFNet",
    "HRNetConfig",
    "HourglassConfig",
    "NetworkConfig",
    "PoseNetwork",
    "PoseOutput",
    "build_network",
    "network_config",
    "normalise",
]


@overload
def build_network(config: NetworkConfig, num_joints: int) -> EFAFNet: ...
@overload
def build_network(config: AnyNetworkConfig, num_joints: int) -> PoseNetwork: ...
def build_network(config: AnyNetworkConfig, num_joints: int) -> PoseNetwork:
    """The network of a configuration, randomly initialised from torch's global generator, in training mode."""
    if isinstance(config, HRNetConfig):
        return HRNet(config, num_joints)
    if isinstance(config, HourglassConfig):
        return StackedHourglass(config, num_joints)
    return EFAFNet(config, num_joints)
