"""The table of commands: where the settings and the function of each live, and which settings matter first."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command: where its settings and its function live, and which fields may be given without their names."""

    name: str
    module: str
    config: str
    run: str
    positional: tuple[str, ...]
    help: str
    config_module: str | None = None
    """Module of the settings, when it is not the function's."""
    preset: str | None = None
    """Preset that the settings start from where none is given."""
    takes_many: bool = False
    """Whether the last of ``positional`` may be given several times."""
    options: tuple[str, ...] = ()
    """Settings that may also be written ``--name VALUE``."""
    first: tuple[str, ...] = ()
    """Settings that matter first, beside the arguments, where there are many; help begins with them."""

    def settings(self) -> type[Any]:
        """Import and return the command's settings."""
        module = importlib.import_module(self.config_module or self.module)
        model: type[Any] = getattr(module, self.config)
        return model

    def usage(self) -> str:
        """Return the command's usage line."""
        places = " ".join(name.upper() for name in self.positional) + "…" * self.takes_many
        return " ".join(filter(None, ["efafnet", self.name, places, "[key=value …]"]))


_HERE = "efafnet.pipelines"
PRESET = "preset"
"""The argument that is not a setting: it names a preset, or a YAML file, that the settings start from."""

COMMANDS = (
    Command(
        "synth", f"{_HERE}.synth.dataset", "SynthConfig", "run_synth", ("out",),
        "Draw a synthetic multi-person data set in the COCO layout.",
    ),
    Command(
        "prepare", f"{_HERE}.crops.prepare", "PrepareConfig", "run_prepare", ("annotations", "images", "out"),
        "Turn images and annotations into a crop store.",
        first=(
            "extra_sources", "protocol", "skeleton", "joint_map", "detections", "encoding.format", "workers",
            "overwrite",
        ),
    ),
    Command(
        "inspect", f"{_HERE}.inspection", "InspectConfig", "run_inspect", ("store",),
        "Show what a crop store holds and draw some of its persons, or what an exported network is.",
        config_module=f"{_HERE}.crops.config",
    ),
    Command(
        "join", f"{_HERE}.crops.join", "JoinConfig", "run_join", ("stores",),
        "Make one crop store of several that were prepared alike.",
        takes_many=True, options=("output",),
    ),
    Command(
        "check", f"{_HERE}.check.check", "CheckConfig", "run_check", (PRESET,),
        "Check new data before a long training: samples drawn, a few persons overfitted.",
        config_module=f"{_HERE}.check.config",
        first=("data.train", "data.val", "network.encoder", "input", "persons", "out", "limit_s"),
    ),
    Command(
        "train", f"{_HERE}.training.start", "TrainConfig", "run_train", (PRESET,),
        "Train a network on crop stores, on one machine or a Ray cluster.",
        config_module=f"{_HERE}.training.config", options=("fork",),
        first=(
            "data.train", "data.val", "name", "input", "batch_size", "epochs", "optimizer.lr", "workers",
            "precision", "init",
        ),
    ),
    Command(
        "evaluate", f"{_HERE}.evaluation.evaluate", "EvaluateConfig", "run_evaluate", ("checkpoint", "data"),
        "Predict with a checkpoint, measure it, and draw its best and worst persons.",
        config_module=f"{_HERE}.evaluation.config",
        first=(
            "output", "overwrite", "workers.count", "test.flip_test", "overlays", "scoring.bootstrap", "weights",
            "mlflow",
        ),
    ),
    Command(
        "predict", f"{_HERE}.prediction.predict", "PredictConfig", "run_predict", ("checkpoint", "inputs"),
        "Find the joints of the persons in images, folders of images and videos.",
        config_module=f"{_HERE}.prediction.config", takes_many=True, options=("output",),
        first=("boxes", "output", "detector.weights", "pictures", "labels", "workers.count", "skeleton", "overwrite"),
    ),
    Command(
        "serve", f"{_HERE}.serving.serve", "ServeConfig", "run_serve", ("models",),
        "Answer requests for the joints of persons over HTTP, with a page to try it.",
        config_module=f"{_HERE}.serving.config", takes_many=True,
        first=("host", "port", "token", "workers.count", "batching.requests", "detector.weights"),
    ),
    Command(
        "detect", f"{_HERE}.prediction.detect", "DetectConfig", "run_detect", ("source", "out"),
        "Find the persons of a set with torchvision's detector: boxes for prepare and predict, measured.",
        config_module=f"{_HERE}.prediction.config",
    ),
    Command(
        "export", f"{_HERE}.prediction.export", "ExportConfig", "run_export", ("checkpoint", "out"),
        "Write a network for other programs: ONNX or torch.export, checked against PyTorch.",
        config_module=f"{_HERE}.prediction.config",
    ),
    Command(
        "convert", f"{_HERE}.convert.convert", "ConvertConfig", "run_convert", ("weights", PRESET, "out"),
        "Turn published weights (HRNet's repository, mmpose) into a checkpoint to test, use or train on.",
        config_module=f"{_HERE}.convert.config", first=("skeleton", "overwrite"),
    ),
    Command(
        "score", f"{_HERE}.evaluation.score", "ScoreConfig", "run_score", ("predictions", "annotations"),
        "Measure a results file against annotations.",
    ),
    Command(
        "tune", f"{_HERE}.promotion", "TuneConfig", "run_promoted", ("space", PRESET),
        "Search settings with Ray Tune and Optuna, and where asked repeat the best with new seeds.",
        config_module=f"{_HERE}.search.config",
        first=(
            "data.train", "data.val", "name", "search.trials", "search.time_s", "search.sampler", "search.stop",
            "search.concurrency", "workers", "promote.finalists",
        ),
    ),
    Command(
        "study", f"{_HERE}.study.study", "StudyConfig", "run_study", ("study", PRESET),
        "Train the rows of a table with several seeds and compare them, the paper's tables among others.",
        config_module=f"{_HERE}.study.config", preset="study_nano",
        first=("data.train", "data.val", "name", "seeds", "max_samples", "concurrency", "workers", "keep"),
    ),
    Command(
        "report", f"{_HERE}.report.report", "ReportConfig", "run_report", (),
        "Compare MLflow runs in one HTML page and a table.",
        config_module=f"{_HERE}.report.config",
    ),
    Command(
        "presets", f"{_HERE}.presets_table", "PresetsConfig", "run_presets", (),
        "List the recipes to start from, each with its network, input, published figure and cost.",
    ),
    Command(
        "models", f"{_HERE}.models_table", "ModelsConfig", "run_models", (),
        "List the networks with their parameters and operations.",
    ),
    Command(
        "doctor", f"{_HERE}.doctor", "DoctorConfig", "run_doctor", (),
        "Say what this machine or cluster has and what is missing.",
    ),
    Command(
        "demo", f"{_HERE}.demo", "DemoConfig", "run_demo", ("out",),
        "Walk the whole road on synthetic people.",
    ),
)  # fmt: skip

BY_NAME = {command.name: command for command in COMMANDS}
