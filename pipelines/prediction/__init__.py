"""Prediction for people: joints of persons in arrays, images and videos; the network as a file for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efafnet.pipelines.prediction.persons import Persons, Predictor
    from efafnet.pipelines.prediction.pose_predictor import PosePredictor

__all__ = ["Persons", "PosePredictor", "Predictor"]


def __getattr__(name: str) -> Any:
    """Import what needs torch and OpenCV when it is asked for: the command line reads the settings in this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "PosePredictor":
        from efafnet.pipelines.prediction.pose_predictor import PosePredictor

        return PosePredictor
    from efafnet.pipelines.prediction import persons

    return getattr(persons, name)
