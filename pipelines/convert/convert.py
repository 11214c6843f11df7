"""``efafnet convert``: published weights of HRNet and the simple baseline as a checkpoint to test, use or train on."""

from __future__ import annotations

from efafnet.models.initialisation import read_weights
from efafnet.models.network import build_network
from efafnet.models.published_poses import load_published
from efafnet.models.skeleton import SKELETONS
from efafnet.pipelines.convert.config import ConvertConfig
from efafnet.pipelines.crops.protocols import described
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform import console
from efafnet.platform.checkpoint import save_checkpoint
from efafnet.platform.storage import check_output, sha256_file


def run_convert(config: ConvertConfig) -> None:
    """Write the checkpoint, and say what can be done with it.

    Raises:
        ValueError: the file holds no weights, or those of another network.
        OSError: it is absent, or the checkpoint cannot be written.
    """
    check_output(config.out, overwrite=config.overwrite)
    skeleton = SKELETONS[config.skeleton]
    network = build_network(config.network, skeleton.num_joints)
    load_published(network, read_weights(config.weights, "weights"), f"weights={config.weights}")
    training = config.model_dump(mode="json", include=set(TrainConfig.model_fields))
    meta = {
        "run": config.name,
        "skeleton": skeleton.name,
        "step": 0,
        "protocol": described(training, (), skeleton.name),
        "converted_from": config.weights.name,
        "weights_sha256": sha256_file(config.weights),
    }
    weights = {"network": network.state_dict()}
    save_checkpoint(config.out, weights=weights, state={}, config=training, meta=meta, overwrite=config.overwrite)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    console.say(f"checkpoint: {config.out}, {parameters / 1e6:.2f} M parameters, {skeleton.name}, input {config.input}")
    console.say(f"next: efafnet evaluate {config.out} STORE, or efafnet predict {config.out} IMAGES")
    console.say(f"next: efafnet train PRESET init={config.out} data.train=STORE trains it on")
