"""What the demo consists of: its names, its routes, and the configuration file made from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

HOST: Final = "127.0.0.1"
"""Everything of the demo lives on loopback."""

SITE: Final = "site.example"
"""The name that TLS and QUIC clients ask for. RFC 2606 keeps .example free for such uses."""

ECHO_ALPN: Final = "demo-echo"
"""The application protocol that the second TLS target speaks."""

DRAIN_SECONDS: Final = 2
"""What an open session is given when the demo stops."""

# Route names, as in the table, the metrics and the access log.
WEB: Final = "web"
TLS_NAME: Final = "tls_name"
TLS_ALPN: Final = "tls_alpn"
SSH: Final = "ssh"
SOCKS5: Final = "socks5"
QUIC: Final = "quic"
WIREGUARD: Final = "wireguard"

# The two default targets have no route of their own name: theirs is called "default".
TCP_ECHO: Final = "tcp_echo"
UDP_ECHO: Final = "udp_echo"

_QUIC_ENTRY: Final = """
[protocols.{route}]
protocol = "quic"
server_names = ["{site}"]
target = ["{target}"]
idle_lifetime = 1
"""

_FILE: Final = """\
# The configuration of the running demo. Change it and save: the proxy notices and takes the new one without
# dropping a connection. A mistake is reported in the log and changes nothing.

listen_port = {port}             # TCP and UDP
listen_address_v4 = "{host}"
workers = {workers}                    # processes that carry traffic; "auto" is one per CPU
tcp_detect_timeout = "3s"      # a client that says nothing goes to tcp_target after this
drain_timeout = "{drain}s"           # what open connections are given at the end

# Where everything goes that no entry below matches. Without these two lines it would be refused.
tcp_target = ["{tcp_echo}"]
udp_target = ["{udp_echo}"]
udp_idle_lifetime = 1          # seconds; short, so that the demo's table need not wait for flows to end

[admin]
listen = "{host}:{admin_port}"

[protocols.{web}]
protocol = "http"
target = ["{web_target}"]

# Two entries for TLS: the first looks at the name asked for (SNI), the second at the application protocol (ALPN).
# The proxy reads both from the client's first message, decrypts nothing and needs no certificate.
[protocols.{tls_name}]
protocol = "tls"
server_names = ["{site}"]
target = ["{tls_name_target}"]

[protocols.{tls_alpn}]
protocol = "tls"
alpn = ["{echo_alpn}"]
target = ["{tls_alpn_target}"]

[protocols.{ssh}]
protocol = "ssh"
target = ["{ssh_target}"]

[protocols.{socks5}]
protocol = "socks5"
target = ["{socks5_target}"]

[protocols.{wireguard}]
protocol = "wireguard"
target = ["{wireguard_target}"]
idle_lifetime = 1
"""


def configuration(*, port: int, admin_port: int, workers: int, targets: Mapping[str, int]) -> str:
    """Return the configuration file for targets given as name -> port on loopback.

    The names are the constants above; ``QUIC`` may be missing, and then the file has no entry for it.
    """
    at = {name: f"{HOST}:{number}" for name, number in targets.items()}
    text = _FILE.format(
        host=HOST,
        port=port,
        admin_port=admin_port,
        workers=workers,
        drain=DRAIN_SECONDS,
        site=SITE,
        echo_alpn=ECHO_ALPN,
        tcp_echo=at[TCP_ECHO],
        udp_echo=at[UDP_ECHO],
        web=WEB,
        web_target=at[WEB],
        tls_name=TLS_NAME,
        tls_name_target=at[TLS_NAME],
        tls_alpn=TLS_ALPN,
        tls_alpn_target=at[TLS_ALPN],
        ssh=SSH,
        ssh_target=at[SSH],
        socks5=SOCKS5,
        socks5_target=at[SOCKS5],
        wireguard=WIREGUARD,
        wireguard_target=at[WIREGUARD],
    )
    if QUIC in at:
        text += _QUIC_ENTRY.format(route=QUIC, site=SITE, target=at[QUIC])
    return text
