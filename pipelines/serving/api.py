"""The HTTP interface, a FastAPI application that knows nothing of Ray: who may ask, what may be asked, the page."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from efafnet.pipelines.formats.headers import declared_size
from efafnet.pipelines.serving.config import LOOPBACK, LimitsConfig
from efafnet.pipelines.serving.messages import Answer, Box, Model, Models, Persons, PoseRequest, Problem, Refusal
from efafnet.platform.configuration_errors import rule_of

Predict = Callable[[PoseRequest], Awaitable[Answer | Refusal]]

_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
# Nothing from elsewhere, neither code nor pictures; nobody may frame the page.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The image file's bytes: JPEG, PNG, WebP, BMP or TIFF.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "boxes or model= make no sense"},
    401: {"model": Problem, "description": "no token, or another"},
    404: {"model": Problem, "description": "no such model"},
    413: {"model": Problem, "description": "the body or the image is too large"},
    415: {"model": Problem, "description": "the body is no image"},
    422: {"model": Problem, "description": "the image is damaged"},
    503: {"model": Problem, "description": "too many requests wait, or no replica lives"},
    504: {"model": Problem, "description": "no answer in time"},
}


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Rules:
    """Who may ask for what."""

    models: tuple[Model, ...]
    limits: LimitsConfig
    finds_persons: bool
    token_digest: str | None
    """SHA-256 of the token; None where only this machine is listened to and none is wanted."""


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def build_app(rules: Rules, predict: Predict, metrics: Callable[[], str]) -> FastAPI:
    """The application; ``predict`` answers what was checked here, ``metrics`` is Prometheus' text."""
    # The usual pages about an interface load their programs from elsewhere: only the description is kept.
    app = FastAPI(title="efafnet", version="1", docs_url=None, redoc_url=None, description=_DESCRIPTION)
    if rules.token_digest is None:
        # A page from elsewhere whose name leads to this machine (DNS rebinding) must not use it.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    app.add_middleware(BodyFirst, most=_DISCARDED_BYTES, timeout_s=rules.limits.timeout_s)
    app.add_exception_handler(RefusedError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_page(app)
    _add_interface(app, rules, predict)
    _add_operation(app, rules, metrics)
    return app


_DESCRIPTION = "Joints of persons in an image. A request's body is the image file; boxes are in its pixels, upright."


def _add_page(app: FastAPI) -> None:
    folder = resources.files("efafnet.pipelines.serving") / "page"

    def file(name: str, kind: str) -> Callable[[], Response]:
        content = (folder / name).read_bytes()
        return lambda: Response(content, media_type=kind, headers=_HEADERS)

    for path, (name, kind) in _PAGE.items():
        app.get(path, include_in_schema=False)(file(name, kind))


def _guard(rules: Rules) -> Callable[..., Awaitable[None]]:
    # Asynchronous, though it waits for nothing: FastAPI hands plain functions to a thread, at every request.
    async def check(authorization: Annotated[str | None, Header()] = None) -> None:
        given = (authorization or "").removeprefix("Bearer ").strip()
        if rules.token_digest is not None and not hmac.compare_digest(digest_of(given), rules.token_digest):
            wanted = "Authorization: Bearer TOKEN"
            raise RefusedError(401, f"{'another token is' if given else 'a token is'} wanted; send the header {wanted}")

    return check


def _add_interface(app: FastAPI, rules: Rules, predict: Predict) -> None:
    guarded = [Depends(_guard(rules))]
    names = [model.name for model in rules.models]

    @app.get("/v1/models", dependencies=guarded, responses={401: _REFUSALS[401]}, summary="The networks that answer")
    async def models() -> Models:
        return Models(models=list(rules.models), finds_persons=rules.finds_persons)

    @app.post(
        "/v1/persons",
        dependencies=guarded,
        responses=_REFUSALS,
        openapi_extra=_IMAGE_BODY,
        response_model=Persons,
        summary="The joints of the persons in an image",
    )
    async def persons(
        request: Request,
        model: Annotated[str, Query(description="One of /v1/models; the first where none is named.")] = "",
        boxes: Annotated[str, Query(description="JSON [[left, top, width, height], …] in pixels.")] = "",
        heatmaps: Annotated[bool, Query(description="Whether each person's heatmaps are wanted too.")] = False,
    ) -> Response:
        if model and model not in names:
            raise RefusedError(404, f"there is no model {model!r}; there are: {', '.join(names)}")
        wanted = parse_boxes(boxes, rules.limits.persons)
        try:
            async with asyncio.timeout(rules.limits.timeout_s):
                image = await read_body(request, rules.limits)
                answer = await predict(PoseRequest(image, model or names[0], wanted, heatmaps))
        except TimeoutError as error:
            raise RefusedError(504, f"no answer within {rules.limits.timeout_s:g} s; try again") from error
        if isinstance(answer, Refusal):
            raise RefusedError(answer.status, answer.reason)
        return Response(answer.json, media_type="application/json")


def _add_operation(app: FastAPI, rules: Rules, metrics: Callable[[], str]) -> None:
    @app.get("/health", summary="Whether requests are taken")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", dependencies=[Depends(_guard(rules))], summary="Figures for Prometheus")
    def figures() -> Response:
        return Response(metrics(), media_type="text/plain; version=0.0.4")


_DISCARDED_BYTES = 256 * 2**20


class BodyFirst:
    """An answer waits until the body of its request has arrived, of which what nobody read is thrown away.

    Whoever is refused before the body was read (no token, too large) would see a broken pipe instead of the answer:
    the connection is closed while they are still sending. No more than ``most`` bytes are waited for, nor longer than
    ``timeout_s``.
    """

    def __init__(self, app: ASGIApp, most: int, timeout_s: float) -> None:
        self.app, self.most, self.timeout_s = app, most, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on (ASGI)."""
        arriving = scope["type"] == "http"

        async def received() -> Message:
            nonlocal arriving
            message = await receive()
            arriving = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            size = 0
            if arriving:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.timeout_s):
                        while arriving and size <= self.most:
                            size += len((await received()).get("body", b""))
            await send(message)

        await self.app(scope, received if arriving else receive, answer)


async def read_body(request: Request, limits: LimitsConfig) -> bytes:
    """The image file of a request; RefusedError for what is too large or no image, before it is decoded."""
    most = int(limits.body_mib * 2**20)
    too_large = RefusedError(413, f"the body is larger than {limits.body_mib:g} MiB; send a smaller image")
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise too_large
    data = bytes(body)
    check_header(data, limits)
    return data


def check_header(data: bytes, limits: LimitsConfig) -> None:
    """RefusedError for bytes that are no image by their header, or one of too many pixels."""
    if not data:
        raise RefusedError(415, "the body is empty; send the image file's bytes as the body (curl --data-binary @FILE)")
    size = declared_size(data)
    if size is None or min(size) < 1:
        raise RefusedError(415, f"the body is no image (begins with {data[:8]!r}); send JPEG, PNG, WebP, BMP or TIFF")
    if size[0] * size[1] > limits.megapixels * 1e6:
        raise RefusedError(
            413, f"the image is {size[0]}x{size[1]}; at most {limits.megapixels:g} million pixels are taken"
        )


def parse_boxes(text: str, most: int) -> tuple[Box, ...] | None:
    """Boxes of a request, None where it gives none; RefusedError for what are none."""
    if not text:
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"boxes={text[:60]!r} is no JSON; write [[left, top, width, height], …]") from error
    if not isinstance(given, list):
        raise RefusedError(400, f"boxes={text[:60]!r}: write [[left, top, width, height], …]")
    if len(given) > most:
        raise RefusedError(400, f"{len(given)} boxes; at most {most} are taken per request")
    return tuple(_box(number, box) for number, box in enumerate(given))


def _box(number: int, box: Any) -> Box:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)
    if not numbers or not all(math.isfinite(v) and abs(v) < 1e6 for v in box) or min(box[2:]) <= 0:
        shown = json.dumps(box)[:80]
        raise RefusedError(
            400, f"box {number} is {shown}: left, top, width, height in pixels, width and height above 0"
        )
    left, top, width, height = map(float, box)
    return left, top, width, height


async def _refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers: Mapping[str, str] = {}
    if error.status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    elif error.status == 503:
        headers = {"Retry-After": "1"}
    return JSONResponse({"error": " ".join(error.reason.split())}, error.status, headers=dict(headers))


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]}: {rule_of(first)}; got {str(first.get('input'))[:60]!r}"}, 400)
