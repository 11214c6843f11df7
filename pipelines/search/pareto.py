"""A trial's figure weighed against what its network costs: two objectives, and the trials that nothing beats in both.

The search's own study keeps one objective, the figure: Optuna takes no intermediate figures for several. What is drawn
for two objectives is drawn on a copy in memory that knows both, and enqueued in the study.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from efafnet.models.cost import network_cost
from efafnet.models.network import build_network
from efafnet.pipelines.search.config import Against
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import pick_device

COST = "cost"
"""Attribute of a trial: what its network costs, in the unit that ``search.against`` names."""
_PASSES = 10


def cost_of(config: TrainConfig, num_joints: int, against: Against) -> float:
    """What one crop costs: multiply-adds in 10^9, or milliseconds.

    The latency is the shortest of ten forward passes of one crop in float32 in this process, on its GPU if there is
    one: the others were held up by whatever else runs.
    """
    if against == "gmac":
        return network_cost(config.network, num_joints, config.input).gmac
    device = pick_device(config.device)
    network = build_network(config.network, num_joints).to(device).eval()
    crop = torch.zeros(1, 3, config.input.height, config.input.width, device=device)
    seconds = []
    with torch.inference_mode():
        for _ in range(_PASSES + 2):
            began = time.perf_counter()
            network(crop)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds[2:])


def both_objectives(trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """A study in memory of the figure (the larger the better) and the cost (the smaller).

    Complete trials have both; those that run have their parameters only, so that a sampler keeps away from them. The
    attribute ``number`` of each is its number in ``trials``.
    """
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for trial in trials:
        cost, figure = trial.user_attrs.get(COST), trial.value if trial.state == TrialState.COMPLETE else None
        values = [figure, cost] if figure is not None and cost is not None else None
        if values or trial.state == TrialState.RUNNING:
            study.add_trial(
                create_trial(
                    state=trial.state,
                    values=values,
                    params=trial.params,
                    distributions=trial.distributions,
                    # A study read back from a file numbers its trials itself and keeps the search's number here.
                    user_attrs={"number": trial.user_attrs.get("number", trial.number)},
                )
            )
    return study


def front(trials: Sequence[FrozenTrial]) -> list[int]:
    """Numbers of the complete trials that no other beats in figure and cost at once, the cheapest first."""
    best = both_objectives(trials).best_trials
    return [trial.user_attrs["number"] for trial in sorted(best, key=lambda trial: trial.values[1])]
