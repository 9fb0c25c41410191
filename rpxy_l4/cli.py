"""The command line. The only place that knows the supervisor and what its children do."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NoReturn

from rpxy_l4 import logs
from rpxy_l4.config.compile import summary
from rpxy_l4.config.schema import json_schema
from rpxy_l4.errors import ConfigError
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel
from rpxy_l4.net.kernel import features
from rpxy_l4.net.listen import BindError, ListeningSocket
from rpxy_l4.net.lookup import why_unresolved
from rpxy_l4.supervisor.main import Supervisor
from rpxy_l4.supervisor.reload import load, read_content
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.version import VERSION

_LOG: Final = logging.getLogger(__name__)

_HELP_COLUMN: Final = 25
_EPILOG: Final = """\
commands:
  demo                   run the proxy with targets of its own, and show what it does
  schema                 print the JSON Schema of the configuration file, for editors

Signals: HUP reloads, TERM and INT drain and stop, QUIT stops at once, USR1 opens the log files again.
Exit status: 0 ok, 1 fault while running, 64 usage, 69 cannot listen, 70 fault of the program, 78 configuration."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_HELP_COLUMN)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, with our exit status."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        sys.exit(ExitStatus.USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default those of the process; return its exit status."""
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # of ``| head``, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILURE
    return status


def _run(given: Sequence[str]) -> int:
    if given[:1] == ["demo"]:
        from rpxy_l4.demo.main import run_demo  # noqa: PLC0415  its packages are wanted by nobody else

        return run_demo(given[1:])
    if given[:1] == ["schema"]:
        _parser("schema").parse_args(given[1:])
        print(json.dumps(json_schema(), indent=2))
        return ExitStatus.OK
    options = _parse(given)
    if options.version:
        _print_version(verbose=options.version > 1)
        return ExitStatus.OK
    try:
        if options.check:
            return _check(options.config)
        return _serve(options.config, options.log_dir)
    except ConfigError as error:
        print(error.render(), file=sys.stderr)
        return ExitStatus.CONFIG


def _parser(command: str = "") -> _Parser:
    return _Parser(
        prog=f"rpxy-l4 {command}".strip(),
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )


def _parse(given: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    parser.usage = "rpxy-l4 -c FILE [-t] [-l DIR] | COMMAND"
    parser.description = "Layer-4 (TCP and UDP) reverse proxy that multiplexes protocols on one port."
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", type=Path, help="configuration file (TOML)")
    add("-t", "--check", action="store_true", help="check the configuration and exit")
    add("-l", "--log-dir", metavar="DIR", type=Path, help="write access.log and rpxy-l4.log there")
    add("-V", "--version", action="count", default=0, help="print the version; -VV what it runs on, too")
    options = parser.parse_args(given)
    if options.config is None and not options.version:
        parser.error("-c FILE is required, or a command")
    return options


def _check(config: Path) -> int:
    """Check the file. Names that have no address now may have one later, so they are only warned about."""
    snapshot, _ = load(read_content(config), str(config), generation=1, known=Directory(), cpus=1)
    for name in sorted(snapshot.names):
        why = why_unresolved(name)
        if why is not None:
            print(f"{config}: warning: {name} has no address now: {why}", file=sys.stderr)
    print(f"{config}: {summary(snapshot)}")
    return ExitStatus.OK


def _serve(config: Path, log_dir: Path | None) -> int:
    try:
        logs.setup("supervisor", log_dir)
        # Imported before the first fork, so that the children share it.
        from rpxy_l4.workers.main import run as run_worker  # noqa: PLC0415  --check needs none of it

        supervisor = Supervisor(config, log_dir, run_worker=run_worker, run_admin=_run_admin)
    except BindError as error:
        print(f"rpxy-l4: cannot listen on {error}", file=sys.stderr)
        return ExitStatus.UNAVAILABLE
    except OSError as error:
        print(f"rpxy-l4: {error}", file=sys.stderr)
        return ExitStatus.FAILURE
    try:
        return supervisor.run()
    except Exception:  # noqa: BLE001  the last frame of the process: say it in the log as well
        _LOG.critical("ends because of a fault of its own; the workers finish their sessions", exc_info=True)
        return ExitStatus.INTERNAL


def _run_admin(channel: Channel, slab: Slab, slots: int, listening: ListeningSocket | None) -> int:
    from rpxy_l4.admin.main import run  # noqa: PLC0415  what it needs costs memory that only this process shall pay

    return run(channel, slab, slots, listening)


def _print_version(*, verbose: bool) -> None:
    print(f"rpxy-l4 {VERSION}")
    if not verbose:
        return
    rows = [("Python", f"{platform.python_version()} ({platform.python_implementation()})")]
    rows += [(package, _version_of(package)) for package in ("uvloop", "cryptography")]
    rows += [("kernel", f"{platform.system()} {platform.release()}"), *features()]
    for name, value in rows:
        print(f"{name + ':':<14} {value}")


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
