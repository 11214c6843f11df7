"""Serving without Ray: persons as the predictor finds them, what is refused and how, who may ask."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from efafnet.pipelines.cli import main
from efafnet.pipelines.prediction import PosePredictor
from efafnet.pipelines.serving.api import RefusedError, digest_of, parse_boxes, read_body
from efafnet.pipelines.serving.config import LimitsConfig, ServeConfig
from efafnet.pipelines.serving.engine import Engine, Prepared
from efafnet.pipelines.serving.messages import Answer, Box, PoseRequest, Refusal
from efafnet.pipelines.serving.metrics import chosen
from efafnet.pipelines.serving.models import find_models
from efafnet.pipelines.serving.serve import replica_options, token_of
from efafnet.platform.cluster import Resources
from tests import crop_data, prediction_cases, serving_cases
from tests.serving_cases import ask, listening

BOXES = [[10.0, 20.0, 50.0, 90.0], [100.0, 30.0, 60.0, 40.0]]
HERE = Resources("127.0.0.1:1", True, 1, 4.0, 0.0, (), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return serving_cases.make_engine(folder, "alpha", "beta")


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with listening(engine, LimitsConfig(body_mib=0.5, megapixels=1, persons=3)) as found:
        yield found


def png(width: int = 200, height: int = 160) -> bytes:
    done, data = cv2.imencode(".png", crop_data.picture(width, height, 3))
    assert done
    return data.tobytes()


def declared_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says what it likes."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


# ---- persons


def test_the_answer_is_what_the_predictor_finds(folder: Path, address: str) -> None:
    expected = PosePredictor.load(folder / "beta")(crop_data.picture(200, 160, 3)[:, :, ::-1].copy(), BOXES)
    status, found = ask(f"{address}/v1/persons?model=beta&boxes={json.dumps(BOXES).replace(' ', '')}", png())
    assert (status, found["model"], found["width"], found["height"]) == (200, "beta", 200, 160)
    assert found["boxes_from"] == "request"
    assert [person["box_xywh"] for person in found["persons"]] == BOXES
    points = [[[k["x"], k["y"], k["score"]] for k in person["keypoints"]] for person in found["persons"]]
    np.testing.assert_allclose(points, expected, atol=0.006)
    # The network of the cases counts every joint: a person's score is the mean of its joints' scores above 0.
    sure = expected[0, :, 2][expected[0, :, 2] > 0]
    assert found["persons"][0]["score"] == pytest.approx(sure.mean() if len(sure) else 0, abs=1e-3)


def test_without_boxes_the_whole_image_is_one_person(address: str) -> None:
    status, found = ask(f"{address}/v1/persons", png())
    assert (status, found["model"], found["boxes_from"]) == (200, "alpha", "whole_image")
    assert [person["box_xywh"] for person in found["persons"]] == [[0, 0, 200, 160]]
    assert "heatmaps" not in found["persons"][0]


def test_a_heatmaps_peak_lies_where_its_joint_does(engine: Engine) -> None:
    waiting = engine.prepare(PoseRequest(png(), "alpha", ((10.0, 20.0, 50.0, 90.0),), with_heatmaps=True))
    assert isinstance(waiting, Prepared)
    [person] = engine.predict([waiting])[0].persons
    assert person.heatmaps is not None
    strip = cv2.imdecode(np.frombuffer(base64.b64decode(person.heatmaps.png_base64), np.uint8), cv2.IMREAD_UNCHANGED)
    # 96x64 crops at stride 4, 17 joints below each other.
    assert strip is not None
    assert strip.shape == (17 * 24, 16)
    assert (person.heatmaps.width, person.heatmaps.height) == (16, 24)
    affine = np.array(person.heatmaps.to_image)
    # The box grown by a quarter: 50 x 90 is 62.5 x 112.5, and as wide as 2:3 wants, 75. So 75/16 pixels per pixel.
    np.testing.assert_allclose(affine[:, :2], np.eye(2) * 75 / 16, atol=1e-6)
    [raw] = engine._predictors["alpha"].pose.heatmaps(waiting.view.crops)[0]
    for joint, maps in zip(person.keypoints, raw, strict=True):
        y, x = np.unravel_index(maps.argmax(), maps.shape)
        place = affine @ [x, y, 1]
        # Decoding moves a joint by a quarter of a heatmap pixel towards the higher neighbour, along either axis.
        assert np.abs(place - [joint.x, joint.y]).max() <= 75 / 16 / 4 + 0.02


def test_requests_of_several_networks_go_together(engine: Engine) -> None:
    boxes: tuple[Box, Box] = ((10, 20, 50, 90), (100, 30, 60, 40))
    wanted = (("alpha", 1), ("beta", 2), ("alpha", 0), ("alpha", 2))
    found = [engine.prepare(PoseRequest(png(), name, boxes[:count])) for name, count in wanted]
    answers = engine.predict([waiting for waiting in found if isinstance(waiting, Prepared)])
    assert [(answer.model, len(answer.persons)) for answer in answers] == [
        ("alpha", 1), ("beta", 2), ("alpha", 0), ("alpha", 2)
    ]  # fmt: skip
    assert answers[0].persons[0].keypoints == answers[3].persons[0].keypoints


def test_a_turned_photograph_is_looked_at_upright(engine: Engine) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    done, jpeg = cv2.imencode(".jpg", crop_data.picture(200, 160, 3))
    assert done
    data = jpeg.tobytes()
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    waiting = engine.prepare(PoseRequest(turned, "alpha", None))
    assert isinstance(waiting, Prepared)
    assert waiting.view.image_rgb.shape == (200, 160, 3)


# ---- what is refused


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("", b"", 415, "empty"),
        ("", b"<html>hello</html>", 415, "no image"),
        ("", b"\xff\xd8\xff\xe0" + b"\0" * 30, 415, "no image"),
        ("", declared_png(60000, 60000), 413, "60000x60000"),
        ("", declared_png(0, 5), 415, "no image"),
        ("", declared_png(50, 50), 422, "without its end chunk"),
        ("", png()[:-30], 422, "without its end chunk"),
        ("", png() + b"\0" * 600_000, 413, "0.5 MiB"),
        ("?model=gamma", png(), 404, "'gamma'; there are: alpha, beta"),
        ("?boxes=[[1,2,3]]", png(), 400, "box 0 is [1, 2, 3]"),
        ("?boxes=[[1,2,3,4],[1,2,0,4]]", png(), 400, "box 1"),
        ("?boxes=[[1,2,NaN,4]]", png(), 400, "box 0"),
        ("?boxes=[[1,2,1e999,4]]", png(), 400, "box 0"),
        ("?boxes=nonsense", png(), 400, "no JSON"),
        ("?boxes=" + "[" * 3000, png(), 400, "no JSON"),
        ("?boxes=[[1,2,3,4],[1,2,3,4],[1,2,3,4],[1,2,3,4]]", png(), 400, "at most 3"),
        ("?heatmaps=perhaps", png(), 400, "heatmaps"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_refusal_is_one_line(address: str, query: str, body: bytes, status: int, words: str) -> None:
    found, answer = ask(f"{address}/v1/persons{query}", body)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_a_body_without_a_length_is_cut_off() -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b"\xff" * 10_000

    class Streamed:
        headers: ClassVar[dict[str, str]] = {}

        def stream(self) -> Any:
            return pieces()

    with pytest.raises(RefusedError, match=r"0\.5 MiB"):
        asyncio.run(read_body(Streamed(), LimitsConfig(body_mib=0.5)))  # type: ignore[arg-type]


def test_what_takes_too_long_is_given_up(engine: Engine) -> None:
    async def never(_asked: PoseRequest) -> Answer | Refusal:
        await asyncio.sleep(60)
        raise AssertionError

    with listening(engine, LimitsConfig(timeout_s=0.2), predict=never) as address:
        status, answer = ask(f"{address}/v1/persons", png())
    assert (status, "0.2 s" in answer["error"]) == (504, True)


def test_boxes_that_are_none_are_no_boxes() -> None:
    assert parse_boxes("", 3) is None
    assert parse_boxes("[]", 3) == ()
    assert parse_boxes("[[-1, 2.5, 3, 4]]", 3) == ((-1.0, 2.5, 3.0, 4.0),)


# ---- who may ask


def test_a_token_is_wanted_where_there_is_one(engine: Engine) -> None:
    with listening(engine, token_digest=digest_of("a-long-enough-token")) as address:
        assert ask(f"{address}/health") == (200, {"status": "ok"})
        assert ask(f"{address}/")[0] == 200
        for path, body in (("/v1/models", None), ("/v1/persons", png()), ("/metrics", None)):
            assert ask(address + path, body)[0] == 401
            assert ask(address + path, body, Authorization="Bearer another")[0] == 401
            assert ask(address + path, body, Authorization="Bearer a-long-enough-token")[0] == 200


def test_names_that_lead_here_from_elsewhere_are_refused(address: str) -> None:
    assert ask(f"{address}/v1/models", Host="evil.example")[0] == 400
    assert ask(f"{address}/v1/models", Host="localhost:9")[0] == 200


def test_who_is_refused_while_sending_hears_why(engine: Engine) -> None:
    """A connection closed under a body that is on its way is a broken pipe, and no answer."""
    with listening(engine, token_digest=digest_of("a-long-enough-token")) as address:
        for _ in range(5):
            status, answer = ask(address + "/v1/persons", png() + b"\0" * 8_000_000)
            assert (status, "a token is wanted" in answer["error"]) == (401, True)


def test_beyond_loopback_there_is_a_token(tmp_path: Path) -> None:
    assert token_of(ServeConfig(models=("x",))) is None
    made = token_of(ServeConfig(models=("x",), host="0.0.0.0"))
    assert made is not None
    assert len(made) == 32  # 24 bytes in base 64
    assert made != token_of(ServeConfig(models=("x",), host="0.0.0.0"))
    with pytest.raises(ValueError, match=r"token=none with host=0\.0\.0\.0"):
        ServeConfig(models=("x",), host="0.0.0.0", token="none")
    file = tmp_path / "token"
    file.write_text("short\n")
    with pytest.raises(ValueError, match="16 characters"):
        token_of(ServeConfig(models=("x",), token=file))
    file.write_text("0123456789abcdef\n")
    assert token_of(ServeConfig(models=("x",), token=file)) == "0123456789abcdef"


# ---- the page and the description


def test_the_page_asks_nobody_else(address: str) -> None:
    for path in ("/", "/page.js", "/page.css"):
        status, text = ask(address + path)
        assert status == 200
        assert "//" not in text.replace("://", "//").replace("// ", "").replace('"//', ""), path


def test_the_interface_is_described(address: str) -> None:
    status, found = ask(f"{address}/openapi.json")
    assert status == 200
    assert set(found["paths"]) == {"/v1/models", "/v1/persons", "/health", "/metrics"}
    persons = found["paths"]["/v1/persons"]["post"]
    assert "image/jpeg" in persons["requestBody"]["content"]
    assert {parameter["name"] for parameter in persons["parameters"]} == {"model", "boxes", "heatmaps", "authorization"}
    assert found["components"]["schemas"]["Keypoint"]["properties"]["x"]["description"].startswith("Pixels")
    places = found["components"]["schemas"]["Persons"]["properties"]["boxes_from"]
    assert places["enum"] == ["request", "detector", "whole_image"]
    assert ask(f"{address}/v1/models")[1]["models"][0]["network"] == "efafnet on nano"


# ---- models and options


def test_models_are_called_after_their_runs(tmp_path: Path) -> None:
    one = prediction_cases.checkpoint(tmp_path / "coco" / "best")
    two = prediction_cases.checkpoint(tmp_path / "else" / "coco" / "checkpoints" / "step-00000007")
    found = find_models([str(tmp_path / "coco"), str(two), str(one)])
    assert [(served.name, served.checkpoint) for served in found] == [
        ("coco", one.resolve()), ("coco-2", two), ("coco-3", one)
    ]  # fmt: skip


def test_a_registered_model_is_that_of_its_run(tmp_path: Path, uri: str) -> None:
    from efafnet.platform.mlflow_client import mlflow_client
    from efafnet.platform.tracking import create_run

    best = prediction_cases.checkpoint(tmp_path / "run" / "best")
    run = create_run(uri, "tests", "served", tags={"efafnet.run_dir": str(tmp_path / "run")})
    client = mlflow_client(uri)
    client.create_registered_model("pose")
    client.create_model_version("pose", str(tmp_path), run)
    client.set_registered_model_alias("pose", "champion", "1")
    for location in ("models:/pose@champion", "models:/pose/1"):
        [served] = find_models([location], uri)
        assert (served.name, served.checkpoint) == (location.removeprefix("models:/"), best.resolve())
    with pytest.raises(ValueError, match="models=models:/pose@nobody: MLflow at"):
        find_models(["models:/pose@nobody"], uri)
    with pytest.raises(ValueError, match="models:/NAME@ALIAS"):
        find_models(["models:/pose"], uri)


def test_replicas_follow_the_load_where_fewer_stay() -> None:
    config = ServeConfig(models=("x",))
    assert replica_options(config, 3, HERE, gpu=True)["num_replicas"] == 3
    assert replica_options(config, 3, HERE, gpu=True)["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    config = ServeConfig.model_validate({"models": ("x",), "workers": {"at_least": 1}, "batching": {"requests": 4}})
    scaling = replica_options(config, 3, HERE, gpu=False)["autoscaling_config"]
    assert isinstance(scaling, dict)
    assert {key: scaling[key] for key in ("min_replicas", "max_replicas", "target_ongoing_requests")} == {
        "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4
    }  # fmt: skip


def test_a_run_that_is_none_is_one_line_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path / "nothing") in error


def test_figures_of_others_stay_away() -> None:
    text = "# HELP ray_serve_a x\n# TYPE ray_serve_a counter\nray_serve_a 1\nray_node_b 2\n# HELP ray_node_b y\n"
    second = "# HELP ray_serve_a x\nray_serve_a 2\nray_efafnet_requests 3\n"
    assert chosen(text + second) == (
        "# HELP ray_serve_a x\n# TYPE ray_serve_a counter\nray_serve_a 1\nray_serve_a 2\nray_efafnet_requests 3\n"
    )
