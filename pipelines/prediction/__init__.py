"""Prediction for people: joints of persons in arrays, images and videos; the network as a file for other programs."""

from efafnet.pipelines.prediction.predictor import PosePredictor

__all__ = ["PosePredictor"]
