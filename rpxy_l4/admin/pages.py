"""The pages of the admin address, as a WSGI application. They only show; nothing can be changed through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from rpxy_l4.admin.health import readiness
from rpxy_l4.control import Status

_INDEX: Final = """\
rpxy-l4 admin

/metrics          Prometheus metrics
/livez            ok while this process answers
/readyz           ok while traffic can be served, else 503 and the reasons
/readyz?verbose   every condition
/healthz          same as /readyz
"""


class Pages:
    """Answers GET and HEAD of the paths of the index page."""

    def __init__(self, registry: CollectorRegistry, status: Callable[[], Status | None]) -> None:
        """``status`` is asked at each request, in the thread that serves it."""
        self._metrics = make_wsgi_app(registry)
        self._status = status

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _text(environ, start_response, "405 Method Not Allowed", "only GET and HEAD\n")
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._show_metrics(environ, start_response)
            case "/livez":
                return _text(environ, start_response, "200 OK", "ok\n")
            case "/readyz" | "/healthz":
                return self._show_readiness(environ, start_response)
            case "/":
                return _text(environ, start_response, "200 OK", _INDEX)
            case _:
                return _text(environ, start_response, "404 Not Found", "no such page; see /\n")

    def _show_metrics(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        # prometheus_client answers no HEAD. Without Accept it writes the Prometheus text format: OpenMetrics, which
        # Prometheus would ask for, names a counter without its _total, so the counter of sessions and the gauge of
        # those open now would have one name.
        asked = {**environ, "REQUEST_METHOD": "GET", "HTTP_ACCEPT": ""}
        body = b"".join(self._metrics(asked, lambda status, headers: begun.append((status, headers))))
        status, headers = begun[0]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _show_readiness(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        checks = readiness(self._status())
        ready = all(check.passed for check in checks)
        asked = {item.partition("=")[0] for item in environ.get("QUERY_STRING", "").split("&")}
        if "verbose" in asked:
            lines = [f"[{'+' if check.passed else '-'}] {check.text}" for check in checks]
        elif ready:
            lines = ["ok"]
        else:
            lines = [check.text for check in checks if not check.passed]
        status = "200 OK" if ready else "503 Service Unavailable"
        return _text(environ, start_response, status, "\n".join(lines) + "\n")


def _text(environ: WSGIEnvironment, start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    body = text.encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    if status.startswith("405"):
        headers.append(("Allow", "GET, HEAD"))
    start_response(status, headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
