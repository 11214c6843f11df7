"""What processes take: measured, kept on disk, added up, priced."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from efafnet.platform import consumption
from efafnet.platform.consumption import (
    Consumption,
    CostConfig,
    Meter,
    Node,
    Reserved,
    consumed,
    energy_counter,
    total,
)
from efafnet.platform.storage import read_json
from tests.waiting import wait_for

NODE = Node("g5.12xlarge", gpus=4, cores=48)


@pytest.mark.parametrize(
    ("prices", "reserved", "price"),
    [
        (CostConfig(), Reserved(1, 8), None),
        (CostConfig(gpu_hour=2.5), Reserved(2, 8), 5.0),
        (CostConfig(gpu_hour=2.5), Reserved(0.5, 8), 1.25),
        (CostConfig(gpu_hour=2.5), Reserved(0, 8), None),
        (CostConfig(core_hour=0.05), Reserved(0, 8), 0.4),
        (CostConfig(core_hour=0.05), Reserved(1, 8), None),
        (CostConfig(node_hour=("g5.12xlarge=6",)), Reserved(1, 48), 1.5),  # one of four GPUs, whatever the cores
        (CostConfig(node_hour=("g5.12xlarge=6",)), Reserved(0, 12), 1.5),  # a quarter of the cores
        (CostConfig(node_hour=("g5.12xlarge=6",)), Reserved(0, 96), 6.0),  # never more than the node
        (CostConfig(node_hour=("other=6",)), Reserved(1, 8), None),
        (CostConfig(node_hour=("g5.12xlarge=6",), gpu_hour=1.0), Reserved(1, 8), 1.0),
    ],
)
def test_a_process_pays_for_what_it_has(prices: CostConfig, reserved: Reserved, price: float | None) -> None:
    assert reserved.per_hour(prices, NODE) == (None if price is None else pytest.approx(price))


@pytest.mark.parametrize("entry", ["g5.xlarge", "=1", "g5.xlarge=dear", "g5.xlarge=-1", "g5.xlarge=nan"])
def test_a_price_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"node_hour holds TYPE=PRICE, like g5.xlarge=1.006; got"):
        CostConfig(node_hour=(entry,))


def test_the_nodes_type_is_the_variables_or_the_firmwares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "product_name").write_text("g5.xlarge\n")
    monkeypatch.setattr(consumption, "_PRODUCT", tmp_path / "product_name")
    monkeypatch.delenv(consumption.NODE_TYPE, raising=False)
    assert Node.here().kind == "g5.xlarge"
    monkeypatch.setenv(consumption.NODE_TYPE, "mine")
    assert Node.here().kind == "mine"
    monkeypatch.delenv(consumption.NODE_TYPE)
    (tmp_path / "product_name").unlink()
    assert Node.here().kind == ""


def test_a_meter_counts_time_cores_processor_energy_and_money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, joules = [100.0], [5000.0]
    monkeypatch.setattr(consumption, "time", SimpleNamespace(monotonic=lambda: clock[0], time_ns=time.time_ns))
    monkeypatch.setattr(consumption, "_processor_s", lambda: clock[0] * 3)
    with Meter(tmp_path, Reserved(0.5, 4), 3.6, lambda: joules[0]):
        clock[0], joules[0] = 110.0, 12200.0
    # Ten seconds: 5 of a GPU, 40 of cores, 30 of processors; half of 7,200 J is 1 Wh; 3.6 an hour is .001 a second.
    (file,) = tmp_path.glob("*.json")
    assert read_json(file) == pytest.approx(
        {"gpu_s": 5.0, "core_s": 40.0, "cpu_s": 30.0, "energy_wh": 1.0, "money": 0.01}
    )


def test_what_a_killed_process_took_is_on_disk_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumption, "WRITE_EVERY_S", 0.01)
    with Meter(tmp_path, Reserved(0, 2), None, lambda: None):
        wait_for("file", lambda: list(tmp_path.glob("*.json")))
        assert consumed(tmp_path).core_s > 0


def test_a_meter_that_cannot_write_costs_the_work_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Meter(tmp_path / "file" / "folder", Reserved(0, 1), None, lambda: None):
        pass
    assert consumed(tmp_path / "file" / "folder") == Consumption()


def test_sums_have_money_only_where_all_parts_have_a_price(tmp_path: Path) -> None:
    one, two = Consumption(1, 2, 3, 4, 5), Consumption(10, 20, 30, None, 50)
    assert total([one, two]) == Consumption(11, 22, 33, 4, 55)
    assert total([one, Consumption(1)]) == Consumption(2, 2, 3, 4, None)
    assert total([]) == Consumption()
    (tmp_path / "cut.json").write_text('{"gpu_s": 1')
    (tmp_path / "foreign.json").write_text('{"x": 1}')
    assert consumed(tmp_path) == Consumption()


def test_mlflows_metrics_come_back_as_they_went() -> None:
    taken = Consumption(1, 2, 3, None, 0.5)
    assert taken.metrics() == {"cost.gpu_s": 1, "cost.core_s": 2, "cost.cpu_s": 3, "cost.money": 0.5}
    assert Consumption.of_metrics({**taken.metrics(), "val/ap": 0.5}) == taken
    assert Consumption.of_metrics({"val/ap": 0.5}) is None


def test_costs_read_in_words() -> None:
    taken = Consumption(5400, 43200, 36000, 450, 3.2)
    told = "1.5 GPU-hours, 12 core-hours (10 of processor time), 0.45 kWh of the GPUs, 3.20 EUR"
    assert taken.text("EUR") == told
    assert Consumption(0, 3600, 1800).text("USD") == "1 core-hours (0.5 of processor time)"
    assert taken.per_point(2, "EUR") == "1.6 EUR"
    assert Consumption(7200, 1).per_point(4, "EUR") == "0.5 GPU-hours"
    assert Consumption(0, 7200).per_point(4, "EUR") == "0.5 core-hours"


def test_energy_is_read_from_the_gpu_that_torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def energy(handle: bytes) -> int:
        if handle != b"GPU-abc":
            raise RuntimeError("not supported")
        return 7_500

    library = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetTotalEnergyConsumption=energy
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert energy_counter("abc")() == 7.5  # NVML counts in millijoules
    assert energy_counter("GPU-abc")() == 7.5
    assert energy_counter("mig")() is None
    assert energy_counter(None)() is None
