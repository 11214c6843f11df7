"""A stand-in for AWS's instance metadata service, version 2, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service:
    """What the service knows; its second version only: no answer without a token that it gave."""

    def __init__(self) -> None:
        self.action: str | None = None
        self.tokens: list[str] = []
        self.asked: list[str] = []
        self.broken = 0
        """Answers of 500 that are left."""
        self.garbled = 0
        """Answers that are left which are no HTTP."""


@contextmanager
def metadata_service() -> Iterator[tuple[Service, str]]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, code: int, text: str = "") -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            state.asked.append(f"PUT {self.path}")
            assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "300"
            state.tokens.append(f"token-{len(state.tokens)}")
            self._answer(200, state.tokens[-1])

        def do_GET(self) -> None:
            state.asked.append(f"GET {self.path}")
            if state.broken:
                state.broken -= 1
                self._answer(500)
            elif state.garbled:
                state.garbled -= 1
                self.wfile.write(b"garbled\r\n\r\n")
            elif self.headers["X-aws-ec2-metadata-token"] not in state.tokens[-1:]:
                self._answer(401)
            elif state.action is None:
                self._answer(404)
            else:
                self._answer(200, state.action)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def action(seconds: float, now: datetime | None = None) -> str:
    """AWS's own example of an answer, its time in ``seconds`` from now."""
    end = (now or datetime.now(UTC)) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})
