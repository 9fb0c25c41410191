"""curl, HTTP/1.1 and HTTP/2 without TLS."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from tests.e2e.conftest import StartProxy
from tests.support.peers import Program, run
from tests.support.ports import free_port
from tests.support.targets import HttpTarget, TcpTarget, answers


def config(http: str, default: str) -> str:
    return f"""
tcp_target = ["{default}"]
[protocols.web]
protocol = "http"
target = ["{http}"]
"""


def test_curl_reaches_the_http_route_and_the_access_log_says_so(start_proxy: StartProxy) -> None:
    with HttpTarget("web") as web, TcpTarget(answers("other")) as other:
        proxy = start_proxy(config(web.text, other.text))

        result = run("curl", "--silent", "--show-error", f"http://127.0.0.1:{proxy.port}/hello")
        assert result.stdout == "web /hello"

        session = proxy.wait_for_session(detected="http", route="web", target=web.text)
        assert session["listener"] == f":{proxy.port}"
        assert session["transport"] == "tcp"
        assert session["client"].startswith("127.0.0.1:")
        assert int(session["bytes_in"]) > len("GET /hello HTTP/1.1")
        assert int(session["bytes_out"]) > len("web /hello")
        assert session["reason"] == "client_eof"


def test_several_requests_go_over_one_kept_connection(start_proxy: StartProxy) -> None:
    with HttpTarget("web") as web, TcpTarget(answers("other")) as other:
        proxy = start_proxy(config(web.text, other.text))

        url = f"http://127.0.0.1:{proxy.port}/"
        result = run("curl", "--silent", "--show-error", f"{url}1", f"{url}2", f"{url}3")

        assert result.stdout == "web /1web /2web /3"
        proxy.wait_for_session(route="web")
        assert proxy.metric("sessions_total", route="web") == 1


def test_large_bodies_arrive_whole_in_both_directions(start_proxy: StartProxy, tmp_path: Path) -> None:
    body = random.Random(1).randbytes(20_000_000)
    upload = tmp_path / "upload"
    upload.write_bytes(body)
    download = tmp_path / "download"
    with HttpTarget("web") as web, TcpTarget(answers("other")) as other:
        proxy = start_proxy(config(web.text, other.text))
        url = f"http://127.0.0.1:{proxy.port}"

        sent = run("curl", "--silent", "--show-error", "--data-binary", f"@{upload}", f"{url}/upload")
        assert sent.stdout == hashlib.sha256(body).hexdigest()

        got = run("curl", "--silent", "--show-error", "--output", str(download), f"{url}/bytes/30000000")
        assert got.stdout == ""
        assert download.read_bytes() == b"x" * 30_000_000
        sessions = proxy.wait_for_sessions(2, route="web")
        assert sum(int(session["bytes_in"]) for session in sessions) > len(body)
        assert proxy.metric("bytes_total", route="web", direction="out") > 30_000_000


def test_http2_with_prior_knowledge_is_http(start_proxy: StartProxy, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("from nghttpd")
    port = free_port()
    with (
        Program("nghttpd", "--no-tls", "--address=127.0.0.1", f"--htdocs={tmp_path}", str(port), tcp=port),
        TcpTarget(answers("other")) as other,
    ):
        proxy = start_proxy(config(f"127.0.0.1:{port}", other.text))

        result = run(
            "curl",
            "--silent",
            "--show-error",
            "--http2-prior-knowledge",
            "--write-out",
            " over %{http_version}",
            f"http://127.0.0.1:{proxy.port}/page",
        )

        assert result.stdout == "from nghttpd over 2"
        proxy.wait_for_session(route="web", detected="http")


def test_what_is_not_http_goes_to_the_default_target(start_proxy: StartProxy) -> None:
    with HttpTarget("web") as web, TcpTarget(answers("other")) as other:
        proxy = start_proxy(config(web.text, other.text))
        with proxy.connect() as client:
            client.sendall(b"\x01\x02 not http")
            assert client.recv(100) == b"other\n\x01\x02 not http"

        assert proxy.wait_for_session(route="default")["detected"] == "unknown"
