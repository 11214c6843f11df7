"""Requests per second of `efafnet serve` beside the predictor alone, with latencies, over loopback on this machine.

    python -m benchmarks.bench_serve

One replica of one thread against `Predictor` with one thread on the same image file and boxes: one image at a time
(`persons`), and many together (`stream`, what batching can reach). Clients in a process of their own keep a fixed
number of requests under way; each part ends after --requests or --seconds, whichever comes first. Proxy, front and
clients need processor time beside the replica: on a machine with one free core their share shows as a lower ratio,
which is why the processor seconds of all processes per request are printed too.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import psutil
import torch

from benchmarks.record import Record, add_option, recorded
from efafnet.models.network import build_network, network_config
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.prediction.persons import Predictor
from efafnet.pipelines.serving.api import Rules
from efafnet.pipelines.serving.config import ServeConfig
from efafnet.pipelines.serving.engine import Engine
from efafnet.pipelines.serving.models import find_models
from efafnet.pipelines.serving.serve import engine_plan, start
from efafnet.platform import console
from efafnet.platform.checkpoint import save_checkpoint
from tests.crop_data import picture

BOX = (60.0, 40.0, 180.0, 400.0)
CLIENTS = (1, 8, 32)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet50", choices=("nano", "resnet50"))
    parser.add_argument("--requests", type=int, default=300, help="most requests of one part")
    parser.add_argument("--seconds", type=float, default=30.0, help="longest time of one part")
    parser.add_argument("--port", type=int, default=8765)
    add_option(parser)
    given = parser.parse_args()
    with recorded("bench_serve", given) as record, tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), given, record)


def _measure(folder: Path, given: argparse.Namespace, record: Record) -> None:
    torch.set_num_threads(1)
    run = _run(folder / "run", given.encoder)
    done, encoded = cv2.imencode(".jpg", picture(640, 480, 3))
    assert done
    image = encoded.tobytes()
    predictor = Predictor.load(run, device="cpu")
    predictor.persons(image, [BOX])
    rows = [_bare("one by one", (predictor.persons(image, [BOX]) for _ in itertools.count()), given)]
    many = predictor.stream(itertools.repeat(image), itertools.repeat([BOX]))
    rows.append(_bare("together", many, given))
    bare_per_s = max(float(str(row[1])) for row in rows)
    _start(run, given.port)
    _load(2, image, given.port, 4, given.seconds)  # the first requests of a replica are slow, as the first image above
    rows += [_served(clients, image, given, bare_per_s) for clients in CLIENTS]
    for name, per_s, _, _, _, each_s, _ in rows:
        record.add(f"{name}", "requests/s", [float(str(per_s))], more_is_better=True)
        record.add(f"{name}, a request", "CPU s", [float(str(each_s))])
    columns = ("contender", "requests/s", "of the best alone", "p50 ms", "p95 ms", "CPU s/request", "refused")
    console.table(columns, rows, title=f"{given.encoder} 256x192, flip test, one person per request, one thread")


def _run(path: Path, encoder: str) -> Path:
    """The checkpoint of an untrained network: its speed is that of a trained one."""
    torch.manual_seed(0)
    network = network_config({"kind": "efafnet", "encoder": encoder})
    tree = {
        "network": network.model_dump(mode="json"),
        "input": {"height": 256, "width": 192},
        "heatmap": {},
        "augmentation": {"padding": 1.25},
        "test": {"batch_size": 16},
    }
    weights = {"network": build_network(network, COCO_17.num_joints).state_dict()}
    save_checkpoint(path / "best", weights=weights, state={}, config=tree, meta={"skeleton": COCO_17.name, "step": 0})
    return path


def _start(run: Path, port: int) -> None:
    workers = {"count": 1, "gpu": "no", "cluster": {"address": "local"}}
    config = ServeConfig.model_validate({"models": [str(run)], "port": port, "workers": workers})
    plan = engine_plan(config, find_models(config.models))
    start(config, plan, Rules(tuple(Engine(plan, torch.device("cpu")).models()), config.limits, False, None))


def _bare(name: str, answers: Iterator[object], given: argparse.Namespace) -> tuple[object, ...]:
    began, cpu_began, count = time.monotonic(), time.process_time(), 0
    while count < given.requests and time.monotonic() - began < given.seconds:
        next(answers)
        count += 1
    seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    return (f"Predictor, {name}", f"{count / seconds:.2f}", "", "", "", f"{cpu_s / count:.3f}", "")


def _served(clients: int, image: bytes, given: argparse.Namespace, bare_per_s: float) -> tuple[object, ...]:
    before = _cpu_s()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, latencies_s, refused = pool.apply(_load, (clients, image, given.port, given.requests, given.seconds))
        cpu_s = _cpu_s() - before
    per_s = len(latencies_s) / seconds
    middle, high = statistics.median(latencies_s) * 1e3, sorted(latencies_s)[int(0.95 * len(latencies_s))] * 1e3
    share = f"{100 * per_s / bare_per_s:.0f} %"
    each = f"{cpu_s / len(latencies_s):.3f}"
    return (f"serve, {clients} under way", f"{per_s:.2f}", share, f"{middle:.0f}", f"{high:.0f}", each, refused)


def _load(clients: int, image: bytes, port: int, requests: int, most_s: float) -> tuple[float, list[float], int]:
    """Seconds, latencies of the answers, number of refusals, with ``clients`` requests under way all the time."""
    path = f"/v1/persons?boxes={json.dumps([BOX]).replace(' ', '')}"
    left, latencies_s, statuses = iter(range(requests)), list[float](), list[int]()
    began = time.monotonic()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() - began < most_s and next(left, None) is not None:
            sent = time.monotonic()
            connection.request("POST", path, image, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            latencies_s.append(time.monotonic() - sent)
            statuses.append(answer.status)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began, latencies_s, sum(status != 200 for status in statuses)


def _cpu_s() -> float:
    """Processor seconds of this process and all that it started."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


if __name__ == "__main__":
    main()
