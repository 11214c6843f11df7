"""The network that a run logged to MLflow, as a function of images: what ``mlflow.pyfunc.load_model`` and
``mlflow models serve`` call.

One row in, one row out. In: ``image``, the bytes of an image file (base64 in JSON), and ``boxes``, left, top, width and
height in image pixels of each person; without boxes the whole image is one person's. Out: ``persons``, a list of
objects with ``id`` (place of the box), ``bbox``, ``score``, ``keypoints`` (x, y, score of each joint, flat) and, where
the network's validation gave them, ``keypoints_visible`` (probability that each is visible).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.predictions import VISIBLE
from efafnet.pipelines.evaluation.served import FACTS
from efafnet.pipelines.evaluation.trained import Trained
from efafnet.pipelines.prediction.persons import Persons, Predictor
from efafnet.pipelines.prediction.pose_predictor import PosePredictor

if TYPE_CHECKING:
    import pandas as pd


class PersonsModel:
    """What MLflow holds as the model."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The persons of each row, see above; ValueError naming the row for an image or a box that is none."""
        import pandas as pd

        del params
        images = list(model_input["image"])
        boxes: list[Any] = list(model_input["boxes"]) if "boxes" in model_input else [None] * len(images)
        for number, image in enumerate(images):
            # Not a path: whoever asks a server would read the server's files.
            if not isinstance(image, bytes):
                raise ValueError(f"row {number}: image is the bytes of an image file; got {type(image).__name__}")
        found = self.predictor.stream(images, [None if _is_absent(given) else list(given) for given in boxes])
        return pd.DataFrame({"persons": [_rows(persons) for persons in found]}, index=model_input.index)


def _is_absent(boxes: Any) -> bool:
    # A data frame has NaN where a row has no boxes.
    return boxes is None or isinstance(boxes, float)


def _rows(persons: Persons) -> list[dict[str, Any]]:
    names = ("id", "bbox", "score", "keypoints", VISIBLE)
    return [{name: entry[name] for name in names if name in entry} for entry in persons.to_coco()]


def _load_pyfunc(path: str) -> PersonsModel:
    """What MLflow calls with the directory of the model's data."""
    import mlflow.pytorch

    facts = json.loads((Path(path) / FACTS).read_text(encoding="utf-8"))
    skeleton = Skeleton.model_validate(facts["skeleton"])
    network = mlflow.pytorch.load_model(str(Path(path).parent))
    trained = Trained.of(Path(path), network, facts["config"], facts["meta"], skeleton)
    return PersonsModel(Predictor(PosePredictor(trained, skeleton)))
