"""The losses: squared error of the heatmaps, online hard keypoint mining (OHKM), intermediate supervision.

Shapes: N crops, K joints, h w the heatmap's side lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from efafnet.models.config import LossConfig
from efafnet.models.heatmaps import HeatmapTarget
from efafnet.models.network import PoseOutput


@dataclass
class PoseLoss:
    """The loss of a batch, person by person."""

    per_sample: Tensor
    """(N,) float32, what is minimised: the final head's loss plus the weighted auxiliary ones. Carries the gradient."""
    by_joint: Tensor
    """(N, K) float32, detached: the final head's squared error of each joint, before any mining."""
    by_head: dict[str, Tensor]
    """(N,) float32 each, detached and unweighted: `final` and the auxiliary heads by stage."""


def joint_errors(heatmaps: Tensor, target: HeatmapTarget) -> Tensor:
    """(N, K) float32: 0.5 * mean over the map of (w*p - w*t)^2, the peers' loss of one joint (their weight is inside).

    `heatmaps` (N, K, h, w) may be of lower precision and, for intermediate supervision, smaller than the target by a
    whole factor. The target is then averaged over blocks, which gives the gradient of comparing the prediction,
    repeated over each block, with the full target, at a fraction of the work.
    """
    wanted = target.heatmaps
    if heatmaps.shape != wanted.shape:
        wanted = _shrunk(wanted, heatmaps.shape)
    # The error itself is taken in float32 whatever the network computed in: half precision loses small squares.
    errors = (heatmaps.float() - wanted).square().mean((2, 3))
    return 0.5 * errors * target.weights.square()


def _shrunk(target: Tensor, shape: torch.Size) -> Tensor:
    factors = {t // s for t, s in zip(target.shape[2:], shape[2:], strict=True)}
    whole = all(t % s == 0 for t, s in zip(target.shape[2:], shape[2:], strict=True))
    if target.shape[:2] != shape[:2] or not whole or len(factors) != 1:
        raise _misfit(shape, target.shape)
    return F.avg_pool2d(target, factors.pop())


def _misfit(heatmaps: torch.Size, target: torch.Size) -> ValueError:
    return ValueError(
        f"heatmaps {tuple(heatmaps)} and target {tuple(target)} do not fit: encode for the network's joints, "
        "the crops' input size and the network's heatmap stride"
    )


def pose_loss(output: PoseOutput, target: HeatmapTarget, config: LossConfig) -> PoseLoss:
    """The loss of each person in a batch; the caller averages over the global batch.

    MSE is ``1/K sum_k 0.5 mean[(w p - w t)^2]``. OHKM is the mean of the R largest of those K terms, taken per person
    and from the final head only; joints of weight 0 can be among them, as in the peers' code. Only the R hardest
    receive a gradient. The auxiliary heads are always plain MSE.

    Args:
        output: of the network.
        target: of the same crops.
        config: kind, R and the auxiliary weight.
    """
    if output.heatmaps.shape != target.heatmaps.shape:
        raise _misfit(output.heatmaps.shape, target.heatmaps.shape)
    errors = joint_errors(output.heatmaps, target)
    final = errors.mean(1)
    if config.kind == "ohkm":
        config.check(errors.shape[1])
        final = errors.topk(config.hard_joints, dim=1, sorted=False).values.mean(1)
    by_head = {"final": final.detach()}
    total = final
    for stage, heatmaps in output.auxiliary.items():
        auxiliary = joint_errors(heatmaps, target).mean(1)
        by_head[stage] = auxiliary.detach()
        total = total + config.auxiliary_weight * auxiliary
    return PoseLoss(per_sample=total, by_joint=errors.detach(), by_head=by_head)
