"""``rpxy-l4 ctl``: ask a running program, and print what it answers."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rpxy_l4.net.local import connect
from rpxy_l4.orders import COMMANDS, MAX_PACKET, Answer, Command, Request, decode_answer, encode_request

DEFAULT_SOCKET: Final = "/run/rpxy-l4/control.sock"
_PATIENCE: Final = 120.0
_USAGE: Final = 64
_UNAVAILABLE: Final = 69
_FAILURE: Final = 1


class _CtlError(Exception):
    """What to print, and the status to exit with."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def run_ctl(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[int, str]:
    """Ask what the arguments say; return the status to exit with, which is 0 when it was done, and what to print.

    The parser gets its options here, and ends the program when the arguments are wrong.
    """
    options = _parse(parser, arguments)
    try:
        answer = _ask(_socket_of(options), Request(options.command, options.argument), options.timeout)
    except _CtlError as error:
        return error.status, f"{parser.prog}: {error}"
    if options.json:
        return answer.status, json.dumps({"status": answer.status, "text": answer.text, "data": answer.data}, indent=2)
    return answer.status, answer.text


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    parser.usage = "rpxy-l4 ctl [-c FILE | -s SOCKET] [--json] [--timeout SECONDS] COMMAND [ARGUMENT]"
    parser.description = "Ask a running rpxy-l4, over the socket that [admin] control of its configuration names."
    names = {command: f"{command} {argument}".rstrip() for command, (argument, _) in COMMANDS.items()}
    parser.epilog = "commands:\n" + "\n".join(
        f"  {names[command]:<23}{text}" for command, (_, text) in COMMANDS.items()
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-c", "--config", metavar="FILE", type=Path, help="configuration file that names the socket")
    where.add_argument("-s", "--socket", metavar="SOCKET", help=f"the socket; {DEFAULT_SOCKET} without -c and -s")
    parser.add_argument("--json", action="store_true", help="print the answer for programs")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=_PATIENCE, help="how long to wait; 120 if not given"
    )
    parser.add_argument("command", metavar="COMMAND", choices=[str(command) for command in Command], help="see below")
    # As a rest, because -1 would be taken for an option.
    parser.add_argument("argument", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="of the command, if it has one")
    options = parser.parse_args(arguments)
    wanted = 1 if COMMANDS[options.command][0] else 0
    if len(options.argument) != wanted:
        parser.error(f"the command is {names[options.command]}")
    if options.timeout <= 0:
        parser.error("the timeout must be more than 0")
    options.argument = "".join(options.argument)
    return options


def _socket_of(options: argparse.Namespace) -> str:
    """Return the path of the socket. The rest of the file does not matter: it may be what is to be reloaded."""
    if options.config is None:
        return options.socket or DEFAULT_SOCKET
    try:
        admin = tomllib.loads(options.config.read_text()).get("admin")
    except OSError as error:
        raise _CtlError(f"{options.config}: {(error.strerror or str(error)).lower()}", _USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _CtlError(f"{options.config}: {error}; name the socket with -s instead", _USAGE) from error
    path = admin.get("control") if isinstance(admin, dict) else None
    if not isinstance(path, str) or not path:
        raise _CtlError(f"{options.config}: there is no control in [admin], so the program has no such socket", _USAGE)
    return path


def _ask(path: str, request: Request, timeout: float) -> Answer:
    try:
        connection = connect(path, timeout)
    except OSError as error:
        raise _CtlError(f"{path}: {(error.strerror or str(error)).lower()}", _UNAVAILABLE) from error
    with connection:
        connection.send(encode_request(request))
        try:
            packet = connection.receive(MAX_PACKET)
        except TimeoutError:
            raise _CtlError(f"no answer within {timeout:g} s; what was asked for may go on", _FAILURE) from None
    if not packet:
        raise _CtlError("the program ended, or has too many to serve, before it answered", _FAILURE)
    try:
        return decode_answer(packet)
    except ValueError as error:
        raise _CtlError(f"what came from {path} is {error}", _FAILURE) from error
