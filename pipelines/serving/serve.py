"""`efafnet serve RUN…`: networks behind HTTP on Ray Serve, until Ctrl-C."""

from __future__ import annotations

import logging
import secrets
import socket
import time
from pathlib import Path

import torch

from efafnet.pipelines.serving.api import Rules, digest_of
from efafnet.pipelines.serving.config import ServeConfig
from efafnet.pipelines.serving.engine import Engine, EnginePlan
from efafnet.pipelines.serving.models import Served, find_models
from efafnet.platform import console
from efafnet.platform.capacity import capacity
from efafnet.platform.cluster import Resources, check_shared, connect

_MIN_TOKEN = 16
_LOOK_S = 1.0


def run_serve(config: ServeConfig) -> None:
    """Serve until the command is stopped.

    Raises:
        ValueError: a model, the token or a setting cannot be used.
        OSError: the port is taken, or Ray cannot be used.
    """
    token = token_of(config)
    served = find_models(config.models, config.tracking_uri)
    plan = engine_plan(config, served)
    # Here first: what is wrong with a checkpoint is one line, before Ray starts.
    engine = Engine(plan, torch.device("cpu"))
    rules = Rules(
        tuple(engine.models()), config.limits, config.detector.weights is not None, token and digest_of(token)
    )
    del engine
    try:
        import ray.serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"serving needs Ray Serve ({error.name} is missing): pip install -c constraints.txt -e '.[serve]'"
        ) from error
    start(config, plan, rules)
    try:
        _tell(config, rules, token)
        while True:
            time.sleep(_LOOK_S)
    finally:
        ray.serve.delete(config.name)


def engine_plan(config: ServeConfig, served: list[Served]) -> EnginePlan:
    """What the engine of every replica loads."""
    return EnginePlan(
        tuple(served), config.weights, config.skeleton, config.test, config.detector, config.limits.persons
    )


def start(config: ServeConfig, plan: EnginePlan, rules: Rules) -> None:
    """Start the application on Ray, or replace the one of its name; returns when it answers."""
    import ray.serve
    from ray.serve.schema import LoggingConfig

    from efafnet.pipelines.serving.deployment import application
    from efafnet.pipelines.serving.replica import ReplicaPlan

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    there = connect(config.workers.cluster)
    console.note(str(there))
    if there.is_local:
        _check_port(config)
    check_shared(there, (served.checkpoint for served in plan.models), "the replicas load it")
    pool = config.workers.pool(capacity(there))
    replica = ReplicaPlan(plan, config.batching, pool.gpu, config.workers.threads)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray.serve.start(
        proxy_location="HeadOnly" if config.proxies == "head" else "EveryNode",
        http_options={"host": config.host, "port": config.port},
        logging_config=quiet,
    )
    bound = application(replica, rules, replica_options(config, pool.count, there, gpu=pool.gpu), front_options(config))
    ray.serve.run(bound, name=config.name, route_prefix="/", logging_config=quiet)


def replica_options(config: ServeConfig, count: int, there: Resources, *, gpu: bool) -> dict[str, object]:
    """Options of the deployment that predicts."""
    workers, batch = config.workers, config.batching.requests
    options: dict[str, object] = {
        "ray_actor_options": {"num_cpus": min(workers.cpus, there.cpus / count), "num_gpus": int(gpu)},
        # One batch in the network and the next being decoded.
        "max_ongoing_requests": 2 * batch,
        "max_queued_requests": config.limits.waiting,
        "graceful_shutdown_timeout_s": config.limits.timeout_s,
        "health_check_period_s": 5,
    }
    least = min(workers.at_least or count, count)
    if least == count:
        return {**options, "num_replicas": count}
    scaling = {
        "min_replicas": least,
        "max_replicas": count,
        "target_ongoing_requests": workers.target_requests or batch,
        "upscale_delay_s": workers.upscale_delay_s,
        "downscale_delay_s": workers.downscale_delay_s,
    }
    return {**options, "autoscaling_config": scaling}


def front_options(config: ServeConfig) -> dict[str, object]:
    """Options of the deployment that takes requests."""
    return {
        "num_replicas": config.fronts,
        "ray_actor_options": {"num_cpus": 0},
        # More than may wait for replicas, so that those beyond are told so at once.
        "max_ongoing_requests": 2 * config.limits.waiting,
        "graceful_shutdown_timeout_s": config.limits.timeout_s,
    }


def token_of(config: ServeConfig) -> str | None:
    """The token that requests must carry; None where none is wanted."""
    if isinstance(config.token, Path):
        try:
            token = config.token.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token={config.token} cannot be read: {error}") from error
        if len(token) < _MIN_TOKEN or not token.isascii() or " " in token:
            raise ValueError(
                f"token={config.token}: a token has {_MIN_TOKEN} characters or more, ASCII without spaces; make one: "
                f"openssl rand -hex 16 > {config.token}"
            )
        return token
    return None if config.token == "none" or config.is_loopback else secrets.token_urlsafe(24)


def _check_port(config: ServeConfig) -> None:
    """Raise OSError where the port is taken: Ray Serve would say so in a log of its own."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
    except OSError as error:
        raise OSError(f"{config.host}:{config.port} cannot be listened on ({error.strerror}); set port=…") from error


def _tell(config: ServeConfig, rules: Rules, token: str | None) -> None:
    host = socket.gethostname() if config.host in ("0.0.0.0", "::") else config.host
    address = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
    for model in rules.models:
        console.say(f"{model.name}: {model.network}, {model.input}, {model.skeleton}, {model.parameters / 1e6:.1f} M")
    # After the sign #, which browsers do not send: neither logs nor proxies see the token.
    console.say(f"page      {address}/{f'#token={token}' if token else ''}")
    header = " -H 'Authorization: Bearer TOKEN'" if token else ""
    asked = f"{address}/v1/persons?boxes=[[LEFT,TOP,WIDTH,HEIGHT]]"
    console.say(f"request   curl{header} --globoff --data-binary @IMAGE.jpg '{asked}'")
    console.say(f"more      {address}/openapi.json  /health  /metrics; stop with Ctrl-C")
