"""What is logged beside a network so that MLflow serves it as a function of images: its facts, signature, example."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.predictions import VISIBLE
from efafnet.pipelines.evaluation.visibility import META
from efafnet.platform.checkpoint import Checkpoint
from efafnet.platform.logged_model import Served

if TYPE_CHECKING:
    import pandas as pd

FACTS = "pose.json"
LOADER = "efafnet.pipelines.prediction.pyfunc"
"""The module that reads :data:`FACTS`; by name, since neither training nor evaluation knows of prediction."""


def served(checkpoint: Checkpoint, skeleton: Skeleton) -> Served:
    """How the network of a checkpoint is served: images (and boxes) in, persons out."""
    facts = {
        "config": checkpoint.config,
        "meta": {key: checkpoint.meta.get(key) for key in ("run", "step", "skeleton", META)},
        "skeleton": skeleton.model_dump(mode="json"),
    }
    packages = ("numpy", "opencv-python-headless", "pandas", "pillow", "pyarrow", "safetensors")
    return Served(LOADER, FACTS, facts, _signature(), _example(), packages)


def _signature() -> Any:
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    numbers = Array(DataType.double)
    person = Object(
        [
            Property("id", DataType.long),
            Property("bbox", numbers),
            Property("score", DataType.double),
            Property("keypoints", numbers),
            Property(VISIBLE, numbers, required=False),
        ]
    )
    # Of any type for MLflow, which takes no whole numbers in lists of doubles; what they are is checked where they are
    # used.
    boxes = ColSpec(AnyType(), "boxes", required=False)
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image"), boxes]),
        outputs=Schema([ColSpec(Array(person), "persons")]),
    )


def _example() -> pd.DataFrame:
    """One grey picture with a box: what a request looks like, not what a person looks like."""
    import pandas as pd

    file = io.BytesIO()
    Image.fromarray(np.full((96, 64, 3), 128, np.uint8)).save(file, "PNG")
    return pd.DataFrame({"image": [file.getvalue()], "boxes": [[[8.0, 8.0, 48.0, 80.0]]]})
