"""A machine with torch alone, without Ray, MLflow and what comes with them, trains and predicts."""

from __future__ import annotations

from pathlib import Path

from tests.test_layout import python

BARE = (
    "efafnet.models.network",
    "efafnet.pipelines.crops.batch",
    "efafnet.pipelines.crops.reader",
    "efafnet.pipelines.crops.store",
    "efafnet.pipelines.evaluation.inference",
    "efafnet.pipelines.prediction.persons",
    "efafnet.pipelines.prediction.pose_predictor",
    "efafnet.pipelines.training.config",
    "efafnet.pipelines.training.loop",
    "efafnet.pipelines.training.step",
    "efafnet.platform.checkpoint",
    "efafnet.platform.configuration",
    "efafnet.platform.tracking",
)
"""What a bare GPU machine, with neither Ray nor MLflow, must be able to import."""


def test_a_bare_machine_can_train_and_predict(tmp_path: Path) -> None:
    """And one process trains, and counts what a network costs, without torch's compiler, whose import takes as long as
    torch's own."""
    program = (
        "import sys\n"
        "absent = 'ray', 'mlflow', 'optuna', 'pandas', 'scipy', 'pycocotools', 'sklearn'\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in absent:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib\n"
        f"for name in {BARE!r}: importlib.import_module(name)\n"
        "from pathlib import Path\n"
        "for path in Path('models').glob('*.py'): importlib.import_module(f'efafnet.models.{path.stem}')\n"
        "import torch\n"
        "from efafnet.pipelines.training import context, loop\n"
        "from tests.training_cases import config_of\n"
        "from efafnet.models import cost\n"
        "config = config_of(Path(sys.argv[1]), 'epochs=1')\n"
        "wide = config.network.model_copy(update={'base_width': 24})\n"
        "assert not cost.looked_up(wide, 17, config.input)\n"
        "assert cost.network_size(wide, 17, config.input).multiply_adds > 0\n"
        "assert loop.run(config, context.PlainContext(torch.device('cpu'))).checkpoint.exists()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = python(program, str(tmp_path))
    assert done.returncode == 0, done.stderr
