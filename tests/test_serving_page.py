"""The page of `efafnet serve` in Chromium: a photograph in, joints drawn, boxes, two networks, the JSON, the camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from efafnet.pipelines.serving.api import digest_of
from tests import crop_data, serving_cases
from tests.chromium import Page, browsing
from tests.serving_cases import listening

# The browser takes seconds to start.
pytestmark = [pytest.mark.slow, pytest.mark.no_ray]
TOKEN = "a-long-enough-token"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str, Path]]:
    folder = tmp_path_factory.mktemp("page")
    photograph = folder / "photograph.png"
    cv2.imwrite(str(photograph), crop_data.picture(400, 300, 3))
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with (
        browsing(folder / "profile", *fake) as page,
        listening(serving_cases.make_engine(folder, "alpha", "beta"), token_digest=digest_of(TOKEN)) as address,
    ):
        yield page, address, photograph


def _opened(served: tuple[Page, str, Path], fragment: str = f"#token={TOKEN}") -> Page:
    page, address, photograph = served
    page.problems.clear()
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=f"{address}/{fragment}")
    page.wait("document.querySelectorAll('#first option').length === 2")
    page.choose_file("#file", photograph)
    page.wait("state.answers.length === 2")
    return page


def _differs(page: Page, number: int) -> int:
    """Pixels of a view that are not the photograph's."""
    return int(
        page.value(
            f"""(() => {{
              const view = document.querySelectorAll('#views canvas')[{number}];
              const plain = new OffscreenCanvas(view.width, view.height).getContext('2d');
              plain.drawImage(state.image, 0, 0);
              const [a, b] = [view.getContext('2d'), plain].map((pen) =>
                pen.getImageData(0, 0, view.width, view.height).data);
              return a.reduce((sum, value, i) => sum + (value !== b[i]), 0);
            }})()"""
        )
    )


def _in_window(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the first view is seen."""
    left, top, scale = page.value(
        "(() => { const view = document.querySelector('#views canvas'), f = view.getBoundingClientRect();"
        " return [f.left, f.top, f.width / view.width]; })()"
    )
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def test_a_photograph_is_drawn_by_both_networks(served: tuple[Page, str, Path]) -> None:
    page = _opened(served)
    assert page.value("state.answers.map((answer) => answer.model)") == ["alpha", "beta"]
    page.value("$('threshold').value = 0, draw()")
    assert _differs(page, 0) > 500
    assert _differs(page, 1) > 500
    assert page.value("document.querySelectorAll('#table tr').length") == 18
    assert page.problems == []
    # The token is not left in the address line, and nobody but the server was asked.
    assert page.value("location.href") == f"{served[1]}/"
    assert all(url.startswith((served[1], "data:", "blob:", "about:")) for url in page.requests), page.requests


def test_a_drag_boxes_a_person_and_a_joint_shows_its_heatmap(served: tuple[Page, str, Path]) -> None:
    page = _opened(served)
    page.show(1000, 900)
    for kind, place in (("mousePressed", (50, 40)), ("mouseMoved", (150, 240)), ("mouseReleased", (150, 240))):
        page.mouse(kind, *_in_window(page, *place), pressed=kind != "mouseReleased")
    page.wait("state.answers[0]?.boxes_from === 'request'")
    box = page.value("state.answers[0].persons[0].box_xywh")
    assert box == pytest.approx([50, 40, 100, 200], abs=1.5)
    joint = page.value("state.answers[0].persons[0].keypoints.findIndex((point) => point.score > 0"
                       " && point.x > 5 && point.x < 390 && point.y > 5 && point.y < 290)")  # fmt: skip
    assert joint >= 0
    before = _differs(page, 0)
    x, y = page.value(f"(({{x, y}}) => [x, y])(state.answers[0].persons[0].keypoints[{joint}])")
    page.mouse("mouseMoved", *_in_window(page, x, y))
    page.wait("state.hovered !== null")
    assert page.value("state.answers[0].persons[0].painted.height") == 17 * 24
    assert _differs(page, 0) > before
    assert page.problems == []


def test_the_json_is_the_answer_without_pictures(served: tuple[Page, str, Path]) -> None:
    page = _opened(served)
    page.value("window.saved = null; URL.createObjectURL = (blob) => { window.saved = blob; return 'data:,'; }; 0")
    page.value("download()")
    found = page.value("window.saved.text().then(JSON.parse)")
    assert [answer["model"] for answer in found] == ["alpha", "beta"]
    assert len(found[0]["persons"][0]["keypoints"]) == 17
    assert "heatmaps" not in found[0]["persons"][0]


def test_it_fits_a_telephone(served: tuple[Page, str, Path]) -> None:
    page = _opened(served)
    page.show(360, 740, mobile=True)
    assert page.value("document.documentElement.scrollWidth") <= 360
    tops = page.value("[...document.querySelectorAll('#views figure')].map((f) => f.getBoundingClientRect().top)")
    assert tops[1] > tops[0], "two views side by side are too small on a telephone"
    small = page.value("[...document.querySelectorAll('button, .button, select')].filter((b) => b.offsetParent"
                       " && b.getBoundingClientRect().height < 40).length")  # fmt: skip
    assert small == 0


def test_the_camera_goes_on_until_it_is_stopped(served: tuple[Page, str, Path]) -> None:
    page = _opened(served)
    page.value("window.before = state.round; $('camera').click()")
    page.wait("state.live && state.round > window.before + 2 && state.answers.length === 2")
    page.value("$('camera').click()")
    page.wait("!state.live && $('video').srcObject === null")
    assert page.value("$('status').classList.contains('problem')") is False


def test_without_the_token_the_page_asks_for_it(served: tuple[Page, str, Path]) -> None:
    page, address, _ = served
    page.call("Page.navigate", url=f"{address}/")
    page.value("sessionStorage.clear()")
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=f"{address}/")
    page.wait("!$('token-form').hidden && $('status').classList.contains('problem')")
    page.value(f"$('token').value = '{TOKEN}', $('token-form').requestSubmit()")
    page.wait("document.querySelectorAll('#first option').length === 2 && $('token-form').hidden")
