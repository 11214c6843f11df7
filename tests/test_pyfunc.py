"""The network that a run logs, as MLflow's function and as its server's: images in, persons out."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.evaluation.served import LOADER, served
from efafnet.pipelines.evaluation.trained import load_trained
from efafnet.pipelines.prediction import Predictor
from efafnet.pipelines.prediction.pyfunc import PersonsModel
from efafnet.platform.checkpoint import load_checkpoint
from efafnet.platform.logged_model import log_model
from tests import crop_data, prediction_cases

BOXES = [[10.0, 20.0, 50.0, 90.0], [100.0, 30.0, 60.0, 40.0]]
WHOLE_BOXES = [[10, 20, 50, 90], [100, 30, 60, 40]]
"""As people type them: MLflow refuses whole numbers where its signature says doubles."""


def test_the_module_that_serves_is_there() -> None:
    assert importlib.import_module(LOADER)._load_pyfunc is not None


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(crop_data.picture(200, 160, seed)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return prediction_cases.checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def logged(uri: str, run_id: str, checkpoint: Path) -> str:
    network = load_trained(checkpoint, COCO_17).network
    how = served(load_checkpoint(checkpoint, with_state=False), COCO_17)
    return log_model(uri, run_id, network, input_shape=(3, 96, 64), served=how).uri


def _expected(checkpoint: Path, image: bytes, boxes: Any) -> list[dict[str, Any]]:
    persons = Predictor.load(checkpoint, device="cpu").persons(image, boxes)
    return [{k: v for k, v in entry.items() if k not in ("image_id", "category_id")} for entry in persons.to_coco()]


def _same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == {"id", "bbox", "score", "keypoints"}
        assert (one["id"], one["bbox"]) == (other["id"], other["bbox"])
        np.testing.assert_allclose(one["keypoints"], other["keypoints"], atol=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_logged_network_is_a_function_of_images(logged: str, checkpoint: Path) -> None:
    model = mlflow.pyfunc.load_model(logged)
    rows = pd.DataFrame({"image": [_png(1), _png(2)], "boxes": [BOXES, None]})
    found = model.predict(rows)["persons"]
    _same(found[0], _expected(checkpoint, _png(1), BOXES))
    _same(found[1], _expected(checkpoint, _png(2), None))
    assert found[1][0]["bbox"] == [0, 0, 200, 160]
    # The column of boxes may be absent.
    _same(model.predict(rows[["image"]])["persons"][1], found[1])
    assert not mlflow.pytorch.load_model(logged).training, "the network itself is still there"
    with pytest.raises(ValueError, match=r"image 0: box 0 is .* width and height above 0"):
        model.predict(pd.DataFrame({"image": [_png(1)], "boxes": [[[0.0, 0.0, 0.0, 5.0]]]}))
    with pytest.raises(Exception, match="image"):
        model.predict(pd.DataFrame({"boxes": [BOXES]}))


def test_no_file_of_the_servers_is_read(logged: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(_png(1))
    served_model = mlflow.pyfunc.load_model(logged)._model_impl
    assert isinstance(served_model, PersonsModel)
    with pytest.raises(ValueError, match="row 0: image is the bytes of an image file; got str"):
        served_model.predict(pd.DataFrame({"image": [str(tmp_path / "secret.png")]}))


def test_its_signature_and_example_go_together(logged: str) -> None:
    model = mlflow.pyfunc.load_model(logged)
    assert model.metadata.signature is not None
    assert model.metadata.signature.inputs.input_names() == ["image", "boxes"]
    assert model.metadata.signature.inputs.required_input_names() == ["image"]
    assert model.metadata.signature.outputs.input_names() == ["persons"]
    [persons] = model.predict(model.input_example)["persons"]
    assert persons[0]["bbox"] == [8, 8, 48, 80]


def test_mlflows_server_answers_json(logged: str, checkpoint: Path) -> None:
    """MLflow's own application, called as a server calls it, without a socket."""
    from mlflow.pyfunc.scoring_server import init

    image = base64.b64encode(_png(3)).decode()
    request = {"dataframe_split": {"columns": ["image", "boxes"], "data": [[image, WHOLE_BOXES]]}}
    status, body = asyncio.run(_post(init(mlflow.pyfunc.load_model(logged)), "/invocations", request))
    assert status == 200, body
    [answer] = json.loads(body)["predictions"]
    _same(answer["persons"], _expected(checkpoint, _png(3), BOXES))
    broken = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(b"no picture").decode()]]}}
    status, body = asyncio.run(_post(init(mlflow.pyfunc.load_model(logged)), "/invocations", broken))
    assert status >= 400
    assert "the image cannot be decoded" in body.decode()


async def _post(application: Any, path: str, content: Any) -> tuple[int, bytes]:
    """Status and body that an ASGI application answers to a request of JSON."""
    data = json.dumps(content).encode()
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
        "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http",
        "server": ("localhost", 80), "client": ("localhost", 1), "root_path": "",
    }  # fmt: skip
    await application(scope, receive, send)
    return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])
