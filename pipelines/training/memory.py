"""How many crops a device holds at once: the whole slice of a batch, or as many as its memory takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.step import StepLosses, Trainee, backward, train_step
from efafnet.platform.configuration import ConfigurationError
from efafnet.platform.storage import read_json, write_json

LIMITS = "memory.json"
"""File in a run's directory: for each device by name, the crops that it is known to hold at once."""
_ALLOCATION_FAILED = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")


class MemoryRanOutError(RuntimeError):
    """A worker's memory ran out while others waited for its gradients. The restarted run takes smaller parts."""


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most that tensors have taken of a GPU so far, in GiB; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    return {"system/gpu_memory_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}


@dataclass
class DeviceMemory:
    """Takes steps in parts that the device holds, and finds out how large these may be."""

    trainee: Trainee
    context: PlainContext
    run_dir: Path
    wanted: Literal["auto"] | int
    """``compute.micro_batch``."""
    say: Callable[[str], None]
    """Tells the user."""
    take_step: Callable[[Trainee, Batch, int, float], StepLosses] = train_step
    """Takes a step."""
    probes: bool = False
    """Whether to find out what fits before the first step: on a GPU. A CPU whose memory runs out ends the process."""
    probed: bool = False
    """Whether that was done."""

    def step(self, batch: Batch, step: int, learning_rate: float) -> StepLosses:
        """Take a step, again in smaller parts where memory runs out on the way.

        Weights are as before then, because nothing has moved them yet; running statistics of batch norm have moved
        once more.

        Raises:
            ConfigurationError: not even one crop fits, or not as many as ``compute.micro_batch`` says.
            MemoryRanOutError: other workers wait for this one's gradients, and all must begin again.
        """
        if not self.probed:
            self._probe(batch)
        while True:
            try:
                return self.take_step(self.trainee, batch, step, learning_rate)
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                reason = _first_line(error)
            # Beyond the handler, whose traceback would hold on to the step's tensors.
            self._shrink(len(batch), reason)
            if self.context.world_size > 1:
                raise MemoryRanOutError(
                    f"rank {self.context.rank}: {reason}; the workers begin again from the last checkpoint, with "
                    f"{self.trainee.micro_batch} crops at once"
                )

    def _probe(self, batch: Batch) -> None:
        """Agree on what fits before the first step, while nobody waits for anybody's gradients."""
        self.probed = True
        if self.wanted != "auto":
            return
        known = self._limits().get(self._name)
        self.trainee.micro_batch = len(batch) if known is None else min(known, len(batch))
        # A forward pass that waits for other workers cannot be tried alone.
        alone = self.context.world_size == 1 or not self.trainee.compute.sync_batch_norm
        while self.probes and alone and (reason := self._why_too_large(batch)):
            self._shrink(len(batch), reason)
        if self.context.world_size > 1:
            sizes = self.context.gather(self.trainee.micro_batch)
            self.trainee.micro_batch = self.context.agree(min(sizes, default=0))
        if self.trainee.micro_batch < len(batch):
            self.say(f"compute.micro_batch=auto: {self.trainee.micro_batch} crops at once on {self._name}")

    def _why_too_large(self, batch: Batch) -> str:
        """Why a forward and backward pass of the largest part does not fit; empty if it does. Leaves no trace."""
        trainee = dataclasses.replace(self.trainee, wrapped=self.trainee.module, ddp=None)
        buffers = [buffer.clone() for buffer in trainee.module.buffers()]
        try:
            # What the optimizer will hold from its first step on.
            moments = 0 if trainee.optimizer.state else 2 * sum(p.numel() for p in trainee.parameters)
            reserved = torch.empty(moments, device=trainee.device)
            backward(trainee, batch.part(0, trainee.micro_batch or len(batch)), nullcontext())
            del reserved
        except RuntimeError as error:
            if not ran_out(error):
                raise
            return _first_line(error)
        finally:
            trainee.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(trainee.module.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return ""

    def _shrink(self, count: int, reason: str) -> None:
        """Halve what is held at once of a slice of ``count`` crops; say so and remember it."""
        held = min(self.trainee.micro_batch or count, count)
        if held == 1:
            raise ConfigurationError(
                f"{self._name} cannot hold a training step of a single crop of input={self.trainee.input_size} "
                f"({reason}); choose a smaller input or network, precision=bf16, or a device with more memory"
            )
        if self.wanted != "auto":
            raise ConfigurationError(
                f"compute.micro_batch = {self.wanted}: {held} crops at once do not fit {self._name} ({reason}); "
                "lower it, or leave it to auto"
            )
        self.trainee.micro_batch = -(-held // 2)
        self.trainee.optimizer.zero_grad(set_to_none=True)
        if self.trainee.device.type == "cuda":
            torch.cuda.empty_cache()
        write_json(self.run_dir / LIMITS, {**self._limits(), self._name: self.trainee.micro_batch})
        self.say(
            f"memory ran out with {held} crops at once on {self._name}: {self.trainee.micro_batch} from here on, the "
            f"batch stays batch_size={self.trainee.global_batch}"
        )

    def _limits(self) -> dict[str, int]:
        """What is known of devices; of what is damaged nothing is, and it is found out again."""
        try:
            found = read_json(self.run_dir / LIMITS)
        except (FileNotFoundError, ValueError):
            return {}
        known = found.items() if isinstance(found, dict) else ()
        return {name: held for name, held in known if type(held) is int and held > 0}

    @property
    def _name(self) -> str:
        return torch.cuda.get_device_name(self.trainee.device) if self.trainee.device.type == "cuda" else "the CPU"


def ran_out(error: RuntimeError) -> bool:
    """Whether an error means that a device's memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _ALLOCATION_FAILED)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
