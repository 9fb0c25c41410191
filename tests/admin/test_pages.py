from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Counter

from rpxy_l4.admin.pages import Pages
from rpxy_l4.control import Status
from tests.admin import material

REGISTRY = CollectorRegistry()
Counter("seen", "Seen.", registry=REGISTRY).inc(3)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(status: Status | None, path: str, *, method: str = "GET", query: str = "", **headers: str) -> Answer:
    begun: dict[str, Any] = {}

    def start_response(line: str, fields: list[tuple[str, str]], _: object = None) -> Any:
        begun.update(status=int(line.split(maxsplit=1)[0]), headers=dict(fields))

    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, **headers}
    body: Iterable[bytes] = Pages(REGISTRY, lambda: status)(environ, start_response)
    return Answer(begun["status"], begun["headers"], b"".join(body))


def test_the_process_that_answers_is_alive() -> None:
    assert ask(None, "/livez")[::2] == (200, b"ok\n")


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_ready_says_ok(path: str) -> None:
    assert ask(material.status(), path)[::2] == (200, b"ok\n")


def test_not_ready_says_why_one_reason_a_line() -> None:
    status = material.status(states=("starting", "dead"), draining=True)

    assert ask(status, "/readyz")[::2] == (503, b"0 of 2 workers are ready\ndraining\n")


@pytest.mark.parametrize("query", ["verbose", "verbose=1", "a=b&verbose"])
def test_verbose_shows_every_condition(query: str) -> None:
    answer = ask(material.status(draining=True), "/readyz", query=query)

    assert answer.status == 503
    assert answer.body.decode().splitlines() == [
        "[+] configuration of generation 1 is in force",
        "[+] 2 of 2 workers are ready",
        "[-] draining",
    ]


def test_the_index_names_every_page() -> None:
    index = ask(None, "/").body.decode()

    for path in ("/metrics", "/livez", "/readyz", "/healthz"):
        assert f"\n{path}" in index
        assert ask(material.status(), path).status == 200


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/livez/x", "", "*"])
def test_any_other_page_is_not_found(path: str) -> None:
    assert ask(None, path).status == 404


@pytest.mark.parametrize("path", ["/", "/metrics", "/readyz", "/nothing"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
def test_other_methods_are_refused_everywhere(method: str, path: str) -> None:
    answer = ask(material.status(), path, method=method)

    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/nothing"])
def test_head_is_get_without_the_body(path: str) -> None:
    get, head = ask(None, path), ask(None, path, method="HEAD")

    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")
    assert int(head.headers["Content-Length"]) == len(get.body) > 0


def test_metrics_are_compressed_for_those_who_ask() -> None:
    answer = ask(None, "/metrics", HTTP_ACCEPT_ENCODING="gzip")

    assert answer.headers["Content-Encoding"] == "gzip"
    assert b"\nseen_total 3.0\n" in gzip.decompress(answer.body)


@pytest.mark.parametrize("accept", ["", "*/*", "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.1"])
def test_metrics_come_in_the_prometheus_text_format_whatever_is_asked_for(accept: str) -> None:
    answer = ask(None, "/metrics", HTTP_ACCEPT=accept)

    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert b"# TYPE seen_total counter\n" in answer.body
    assert b"# EOF" not in answer.body


def test_answers_about_health_are_not_to_be_stored() -> None:
    assert ask(None, "/readyz").headers["Cache-Control"] == "no-store"
