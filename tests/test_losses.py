"""The losses, computed by hand and against the peers' formula written as loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from efafnet.models.config import LossConfig
from efafnet.models.heatmaps import HeatmapTarget
from efafnet.models.losses import joint_errors, pose_loss
from efafnet.models.network import PoseOutput

MSE = LossConfig(kind="mse")


def _case(
    predicted: list[list[float]], wanted: list[list[float]], weights: list[list[float]]
) -> tuple[Tensor, HeatmapTarget]:
    """N x K maps of 2x2 pixels, each of one value."""
    p = torch.tensor(predicted)[..., None, None].expand(-1, -1, 2, 2).clone().requires_grad_()
    t = torch.tensor(wanted)[..., None, None].expand(-1, -1, 2, 2)
    return p, HeatmapTarget(t, torch.tensor(weights))


def test_mse_by_hand() -> None:
    p, target = _case([[1.0, 3.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]])
    loss = pose_loss(PoseOutput(p, {}), target, MSE)
    # Person 0: 0.5*1 and 0.5*4, mean 1.25. Person 1: 0, and the second joint does not count but divides.
    assert loss.per_sample.tolist() == [1.25, 0.0]
    assert loss.by_joint.tolist() == [[0.5, 2.0], [0.0, 0.0]]
    assert loss.by_head["final"].tolist() == [1.25, 0.0]
    loss.per_sample.mean().backward()
    assert p.grad is not None
    # d/dp of mean_n mean_k 0.5 mean_px (p-t)^2 = (p-t) / (N K px) = (p-t)/16
    assert p.grad[:, :, 0, 0].tolist() == [[1 / 16, 2 / 16], [0.0, 0.0]]


def test_weight_stands_inside_the_square() -> None:
    p, target = _case([[2.0]], [[0.0]], [[0.5]])
    # 0.5 * (0.5 * 2)^2
    assert pose_loss(PoseOutput(p, {}), target, MSE).per_sample.item() == 0.5


def _peer_loss(p: Tensor, t: Tensor, w: Tensor, top: int | None) -> float:
    """The peers' formulas, joint by joint and person by person."""
    n, k = w.shape
    squared = ((p * w[..., None, None] - t * w[..., None, None]) ** 2).flatten(2).mean(2)
    if top is None:
        return sum(0.5 * float(squared[:, j].mean()) for j in range(k)) / k
    return (
        sum(sum(sorted((0.5 * float(squared[i, j]) for j in range(k)), reverse=True)[:top]) / top for i in range(n)) / n
    )


@pytest.mark.parametrize("top", [None, 1, 8, 17])
def test_agrees_with_the_peers_formula(top: int | None) -> None:
    g = torch.Generator().manual_seed(0)
    p, t = (torch.randn(5, 17, 12, 9, generator=g) for _ in range(2))
    w = (torch.rand(5, 17, generator=g) > 0.3).float()
    config = MSE if top is None else LossConfig(kind="ohkm", hard_joints=top)
    loss = pose_loss(PoseOutput(p, {}), HeatmapTarget(t, w), config)
    assert loss.per_sample.mean().item() == pytest.approx(_peer_loss(p, t, w, top), rel=1e-5)


def test_ohkm_takes_the_hardest_of_each_person_and_only_they_learn() -> None:
    p, target = _case([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]], [[0.0] * 3] * 2, [[1.0] * 3] * 2)
    loss = pose_loss(PoseOutput(p, {}), target, LossConfig(kind="ohkm", hard_joints=2))
    # Person 0: (4.5 + 2) / 2, person 1: (12.5 + 0.5) / 2.
    assert loss.per_sample.tolist() == [3.25, 6.5]
    loss.per_sample.sum().backward()
    assert p.grad is not None
    assert (p.grad.abs().amax((2, 3)) > 0).tolist() == [[False, True, True], [True, False, True]]
    # The hardest of two: d/dp 0.5 mean(p^2) / 2 = p / (4 px * 2)
    assert p.grad[0, 1, 0, 0].item() == 3 / 8


@pytest.mark.parametrize(("hard_joints", "loss"), [(2, 2.5), (1, 4.5)])
def test_the_hardest_joints_are_averaged(hard_joints: int, loss: float) -> None:
    p, target = _case([[1.0, 3.0]], [[0.0, 0.0]], [[1.0, 1.0]])
    config = LossConfig(kind="ohkm", hard_joints=hard_joints)
    assert pose_loss(PoseOutput(p, {}), target, config).per_sample.item() == loss


def test_more_hard_joints_than_there_are_is_refused() -> None:
    p, target = _case([[1.0, 3.0]], [[0.0, 0.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match=r"hard_joints=3 keeps more joints than the skeleton's 2.*1\.\.2"):
        pose_loss(PoseOutput(p, {}), target, LossConfig(kind="ohkm", hard_joints=3))


def test_joints_without_weight_can_be_among_the_hardest() -> None:
    p, target = _case([[3.0, 9.0]], [[0.0, 0.0]], [[1.0, 0.0]])
    assert pose_loss(PoseOutput(p, {}), target, LossConfig(kind="ohkm", hard_joints=2)).per_sample.item() == 2.25


def test_auxiliary_heads_add_plain_mse_with_their_weight_also_under_ohkm() -> None:
    p, target = _case([[1.0, 3.0]], [[0.0, 0.0]], [[1.0, 1.0]])
    small = torch.full((1, 2, 1, 1), 2.0)
    output = PoseOutput(p, {"c5": small, "c4": small})
    loss = pose_loss(output, target, LossConfig(kind="ohkm", hard_joints=1, auxiliary_weight=0.25))
    # Final: 4.5. Each head: 0.5*4 on both joints, mean 2, weighted 0.5.
    assert loss.per_sample.item() == 4.5 + 0.5 + 0.5
    assert {k: v.item() for k, v in loss.by_head.items()} == {"final": 4.5, "c5": 2.0, "c4": 2.0}


def test_auxiliary_gradient_is_that_of_the_repeated_prediction() -> None:
    torch.manual_seed(0)
    small = torch.randn(3, 4, 2, 3, requires_grad=True)
    target = HeatmapTarget(torch.rand(3, 4, 16, 24), torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(3, 4))
    (by_blocks,) = torch.autograd.grad(joint_errors(small, target).sum(), small)
    repeated = F.interpolate(small, scale_factor=8, mode="nearest")
    (by_repetition,) = torch.autograd.grad(joint_errors(repeated, target).sum(), small)
    torch.testing.assert_close(by_blocks, by_repetition)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    p = torch.full((1, 1, 2, 2), 1e-4, dtype=torch.float16)
    loss = pose_loss(PoseOutput(p, {}), HeatmapTarget(torch.zeros(1, 1, 2, 2), torch.ones(1, 1)), MSE)
    assert loss.per_sample.dtype == torch.float32
    # 1e-8 / 2 would be 0 in half precision.
    assert loss.per_sample.item() == pytest.approx(5e-9, rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (2, 4, 8, 8), (2, 4, 3, 3)])
def test_a_target_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    target = HeatmapTarget(torch.zeros(2, 4, 8, 6), torch.ones(2, 4))
    with pytest.raises(ValueError, match="do not fit: encode for the network's joints"):
        pose_loss(PoseOutput(torch.zeros(shape), {}), target, MSE)


def test_check_refuses_more_hard_joints_than_joints() -> None:
    LossConfig(kind="ohkm", hard_joints=14).check(14)
    LossConfig(kind="mse", hard_joints=17).check(14)
    with pytest.raises(ValueError, match=r"hard_joints=15 .* 14: set loss.hard_joints to 1\.\.14, or loss.kind=mse"):
        LossConfig(kind="ohkm", hard_joints=15).check(14)
