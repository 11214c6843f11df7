"""The settings of serving, apart from the code that needs torch, Ray and FastAPI."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from efafnet.models.settings import Settings
from efafnet.pipelines.evaluation.config import ActorsConfig, TestOverrides, Weights
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.platform.addresses import BareAddress
from efafnet.platform.mirror import Location

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only programs on the same machine reach."""


class ReplicasConfig(ActorsConfig):
    """The processes that predict; ``count`` of them hold the networks, one per GPU or core unless given."""

    count: int | None = Field(default=None, ge=1)
    """Replicas that hold the networks; null for one per GPU or core. Also written workers=N."""
    at_least: int | None = Field(default=None, ge=1)
    """Replicas that stay when nobody asks; with fewer than count their number follows the load. None for count."""
    target_requests: float | None = Field(default=None, gt=0)
    """Requests under way per replica above which more replicas are started; none for batching.requests."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """Seconds that the load must last before replicas are added."""
    downscale_delay_s: float = Field(default=120.0, ge=0)
    """Seconds that the load must be gone before replicas are ended."""


class BatchingConfig(Settings):
    """Requests that go through the network together."""

    requests: int = Field(default=16, ge=1)
    """Most requests of one batch; their persons are cut into passes of test.batch_size."""
    wait_ms: float = Field(default=2.0, ge=0)
    """Milliseconds that a request waits for others when the replica is idle."""


class LimitsConfig(Settings):
    """What one request may cost; what is beyond is refused before it is decoded."""

    body_mib: float = Field(default=20.0, gt=0)
    """Largest body, MiB."""
    megapixels: float = Field(default=50.0, gt=0, le=256)
    """Largest image by its header, millions of pixels."""
    persons: int = Field(default=100, ge=1)
    """Most boxes of one request; of a detector's boxes the surest are taken."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds from the first byte to the answer."""
    waiting: int = Field(default=256, ge=1)
    """Requests that wait for a replica; more are told to come again."""


class ServeConfig(Settings):
    """Answer requests for the joints of persons over HTTP, with a page to try it."""

    models: tuple[Location, ...] = Field(min_length=1)
    """Runs' directories (their best checkpoints), checkpoints, or models of MLflow's registry by alias or version:
    models:/efafnet@champion, models:/efafnet/3. The first answers where a request names none."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of the machine's, which needs a token."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    token: Literal["auto", "none"] | Path = "auto"
    """File of the token that requests must carry; auto makes one where host is beyond loopback, and shows it once."""
    name: str = Field(default="efafnet", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the application in Ray Serve; one of the same name is replaced without a pause."""
    proxies: Literal["head", "every_node"] = "head"
    """Nodes that listen: behind a load balancer, those with replicas."""
    fronts: int = Field(default=1, ge=1)
    """Processes that check requests and hand them to the replicas; each is good for some hundred requests/s."""
    detector: DetectorConfig = DetectorConfig()
    """Who looks for persons where a request gives no boxes; without its weights the image is taken as one person."""
    weights: Weights = "best"
    """Which weights of the checkpoints: best takes the moving average where one was kept."""
    skeleton: str = "auto"
    """Joints of the networks: auto by the checkpoint, else a known name, a YAML file or a crop store that has them."""
    test: TestOverrides = TestOverrides()
    batching: BatchingConfig = BatchingConfig()
    limits: LimitsConfig = LimitsConfig()
    workers: ReplicasConfig = ReplicasConfig()
    tracking_uri: BareAddress | None = None
    """Address of the MLflow store of models:/…; none for MLFLOW_TRACKING_URI."""

    @model_validator(mode="after")
    def _guarded(self) -> ServeConfig:
        if self.token == "none" and not self.is_loopback:
            raise ValueError(
                f"token=none with host={self.host}: whoever reaches this machine could use it; leave token=auto, give "
                "token=FILE, or listen on host=127.0.0.1"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine is listened to."""
        return self.host in LOOPBACK
