"""Networks in MLflow: they come back whole, the best of its terms is champion, checkpoints carry their figures."""

from __future__ import annotations

from pathlib import Path

import importlib_metadata
import mlflow
import pytest
import torch
from mlflow.utils import requirements_utils
from torch import nn

from efafnet.platform.logged_model import Score, log_checkpoints, log_model
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.tracking import Tracker


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 17, 1))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_logged_network_comes_back_whole_for_any_batch(
    uri: str, run_id: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed() -> None:
        pytest.fail("the files of every installed package are listed, half a second of each run")

    monkeypatch.setattr(requirements_utils, "_MODULES_TO_PACKAGES", None)  # what an earlier test may have listed
    monkeypatch.setattr(importlib_metadata, "packages_distributions", listed)
    network = small_network()
    network(torch.randn(8, 3, 32, 32))  # batch-norm statistics other than the initial ones
    logged = log_model(uri, run_id, network, input_shape=(3, 32, 32), step=7, metadata={"skeleton": "coco17"})
    assert network.training, "logging must not touch the network that trains"
    assert logged.version is None
    again = mlflow.pytorch.load_model(logged.uri)
    images = torch.randn(batch, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), network.eval()(images))
    assert not again.training
    again.train()
    again(images).sum().backward()
    assert again[0].weight.grad is not None, "a network to go on training, not a frozen graph"
    run = mlflow_client(uri).get_run(run_id)
    assert run.outputs is not None
    assert [output.step for output in run.outputs.model_outputs] == [7]
    found = mlflow_client(uri).search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert "network" in {model.name for model in found}, "it is found beside its run"
    assert run.info.status == "RUNNING", "logging a network must not end the run"


def test_only_a_better_network_of_the_same_terms_becomes_champion(
    uri: str, run_id: str, request: pytest.FixtureRequest
) -> None:
    challengers = [
        (Score("ap", 0.50, "coco"), 1, "is now champion"),
        (Score("ap", 0.50, "coco"), 1, "version 1 stays champion: its ap is 0.5000, the new network's 0.5000"),
        (Score("ap", 0.90, "mini"), 1, "version 1 stays champion: it was measured on other data"),
        (Score("ar", 0.90, "coco"), 1, "version 1 stays champion: it was measured on other data"),
        (None, 1, "version 1 stays champion: the new network was not validated"),
        (Score("ap", 0.51, "coco"), 6, "is now champion, after version 1"),
    ]
    for number, (score, champion, told) in enumerate(challengers, start=1):
        network = small_network()
        with torch.no_grad():
            network[0].weight.fill_(number)  # type: ignore[index]
        logged = log_model(
            uri, run_id, network, input_shape=(3, 32, 32), register_as="pose", alias="champion", score=score
        )
        assert logged.version == str(number)
        assert logged.alias_note.startswith(told)
        assert str(mlflow_client(uri).get_model_version_by_alias("pose", "champion").version) == str(champion)
    test = request.node.name
    described = [mlflow_client(uri).get_model_version("pose", number).description for number in ("5", "6")]
    assert described == [f"network, step 0 of run {test}", f"network, step 0 of run {test}: ap 0.5100"]
    mlflow.set_tracking_uri(uri)
    assert mlflow.pytorch.load_model("models:/pose@champion")[0].weight[0, 0, 0, 0] == 6


def test_checkpoints_are_models_with_the_metrics_of_their_step(uri: str, run_id: str, tmp_path: Path) -> None:
    with Tracker(uri, run_id) as tracker:
        for step in (10, 20):
            tracker.log_metrics({"val/ap": step / 100, "val/ar": 0.5, "train/loss": 1.0}, step)
    for _ in range(2):  # a run whose end was cut short ends again
        log_checkpoints(uri, run_id, {10: tmp_path / "ten", 20: tmp_path / "twenty"}, "sbn-r50-64x64")
    client = mlflow_client(uri)
    experiment = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    found = {model.name: {metric.key: metric.value for metric in model.metrics or ()} for model in models}
    assert found == {
        "step-10-sbn-r50-64x64": {"val/ap": 0.1, "val/ar": 0.5},
        "step-20-sbn-r50-64x64": {"val/ap": 0.2, "val/ar": 0.5},
    }
    assert {model.tags["path"] for model in models} == {f"{tmp_path}/ten", f"{tmp_path}/twenty"}
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "val/ap")] == [(10, 0.1), (20, 0.2)]
