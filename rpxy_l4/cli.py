"""The command line. The only place that knows the supervisor and what its children do.

Each command imports what it needs: loading all of it takes a while, and a program that is to serve must not be ended
by a HUP meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from rpxy_l4.errors import ConfigError
from rpxy_l4.supervisor.signals import hold
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.version import VERSION

if TYPE_CHECKING:
    from rpxy_l4.metrics.slab import Slab
    from rpxy_l4.net.channel import Channel
    from rpxy_l4.net.listen import ListeningSocket
    from rpxy_l4.snapshot import Snapshot

_LOG: Final = logging.getLogger(__name__)

_HELP_COLUMN: Final = 25
_EPILOG: Final = """\
commands:
  ctl                    ask a running program for its state, to reload, to upgrade; see ctl --help
  demo                   run the proxy with targets of its own, and show what it does
  schema                 print the JSON Schema of the configuration file, for editors

Signals: HUP reload, USR2 upgrade, TTIN, TTOU a worker more, less, TERM, INT drain and stop, QUIT stop, USR1 reopen log.
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
    _fill_standard_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except (
        OSError
    ) as error:  # what was to be printed: the reader of a pipe is gone, as with ``| head``, or a disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _complain(f"rpxy-l4: {_in_words(error)}")
        return ExitStatus.FAILURE
    return status


def _fill_standard_streams() -> None:
    """Open what was closed when the program was started: its number would be given to a socket, and then written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _complain(text: str) -> None:
    """Print to stderr; where that is impossible, the exit status has to say it all."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _in_words(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def _run(given: Sequence[str]) -> int:
    if given[:1] == ["demo"]:
        from rpxy_l4.demo.main import run_demo

        return run_demo(given[1:])
    if given[:1] == ["ctl"]:
        from rpxy_l4.ctl import run_ctl

        status, text = run_ctl(_parser("ctl"), given[1:])
        print(text, file=sys.stderr if status else sys.stdout)
        return status
    if given[:1] == ["schema"]:
        from rpxy_l4.config.schema import json_schema

        _parser("schema").parse_args(given[1:])
        print(json.dumps(json_schema(), indent=2))
        return ExitStatus.OK
    options = _parse(given)
    try:
        if options.version:
            _print_version(verbose=options.version > 1, config=options.config)
            return ExitStatus.OK
        if options.check_upgrade:
            return _check_upgrade(options.config, options.log_dir)
        if options.check:
            return _check(options.config)
        return _serve(options.config, options.log_dir)
    except ConfigError as error:
        _complain(error.render())
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
    add(
        "-V",
        "--version",
        action="count",
        default=0,
        help="print the version; -VV what it runs on, too; with -c, what of FILE it can do",
    )
    add("--check-upgrade", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.config is None and not options.version:
        parser.error("-c FILE is required, or a command")
    return options


def _check(config: Path) -> int:
    """Check the file. Names that have no address now may have one later, so they are only warned about."""
    from rpxy_l4.config.compile import summary
    from rpxy_l4.net.lookup import why_unresolved
    from rpxy_l4.supervisor.reload import printable

    file = printable(config)
    snapshot = _load(config)
    for name in sorted(snapshot.names):
        why = why_unresolved(name)
        if why is not None:
            print(f"{file}: warning: {name} has no address now: {why}", file=sys.stderr)
    print(f"{file}: {summary(snapshot)}")
    return ExitStatus.OK


def _load(config: Path) -> Snapshot:
    """Read the file as a program that starts would. Raises ConfigError."""
    from rpxy_l4.metrics.layout import Directory
    from rpxy_l4.supervisor.reload import load, printable, read_content

    content = read_content(config, may_wait=True)
    snapshot, _ = load(content, printable(config), generation=1, known=Directory(), cpus=1)
    return snapshot


def _check_upgrade(config: Path, log_dir: Path | None) -> int:
    """Judge what a running supervisor of another version would leave to this one; it comes on standard input."""
    from rpxy_l4.kernel.path import why_not
    from rpxy_l4.snapshot import KernelPath
    from rpxy_l4.supervisor import upgrade
    from rpxy_l4.supervisor.reload import content_of, load, printable

    try:
        state = upgrade.unpack(sys.stdin.buffer.read())
    except upgrade.UpgradeError as error:
        _complain(f"rpxy-l4 {VERSION}: {error}")
        return ExitStatus.UNAVAILABLE
    snapshot, _ = load(
        content_of(state.content),
        printable(config),
        generation=state.generation + 1,
        known=state.directory(),
        cpus=1,
        slots=state.slots,
    )
    reason = why_not() if snapshot.kernel_path is KernelPath.ON else None
    if reason is not None:
        _complain(f'rpxy-l4 {VERSION}: kernel_path = "on" is not possible: {reason}')
        return ExitStatus.UNAVAILABLE
    return ExitStatus.OK if _open_logs(log_dir) else ExitStatus.FAILURE


def _open_logs(log_dir: Path | None) -> bool:
    """Begin to log as the supervisor; False, and a complaint, when that is impossible."""
    from rpxy_l4 import logs

    try:
        logs.setup("supervisor", log_dir)
    except OSError as error:
        _complain(f"rpxy-l4: cannot open the log files: {_in_words(error)}")
        return False
    return True


def _serve(config: Path, log_dir: Path | None) -> int:
    hold()
    from rpxy_l4.supervisor import systemd

    # Before anything is opened: what systemd has passed is known by its numbers.
    manager = systemd.Manager.take(os.environ, os.getpid())
    from rpxy_l4.kernel.path import KernelPathError
    from rpxy_l4.net.listen import BindError
    from rpxy_l4.supervisor.main import Supervisor
    from rpxy_l4.supervisor.upgrade import State, UpgradeError, inherited, take_over

    # Before the first fork, so that the children share it.
    from rpxy_l4.workers.main import run as run_worker

    if not _open_logs(log_dir):
        return ExitStatus.FAILURE

    def make(before: State | None) -> Supervisor:
        return Supervisor(config, log_dir, run_worker=run_worker, run_admin=_run_admin, manager=manager, before=before)

    try:
        before = inherited(os.environ)
        supervisor = make(None) if before is None else take_over(make, before, manager)
    except UpgradeError as error:
        _complain(f"rpxy-l4: {error}")
        return ExitStatus.UNAVAILABLE
    except BindError as error:
        _complain(f"rpxy-l4: cannot listen on {error}")
        return ExitStatus.UNAVAILABLE
    except KernelPathError as error:
        _complain(f'rpxy-l4: kernel_path = "on" is not possible: {error}')
        return ExitStatus.UNAVAILABLE
    except OSError as error:
        _complain(f"rpxy-l4: {_in_words(error)}")
        return ExitStatus.FAILURE
    try:
        return supervisor.run()
    except Exception:  # noqa: BLE001  the last frame of the process: say it in the log as well
        _LOG.critical("ends because of a fault of its own; the workers finish their sessions", exc_info=True)
        return ExitStatus.INTERNAL


def _run_admin(channel: Channel, slab: Slab, workers: int, listening: ListeningSocket | None) -> int:
    # What it needs costs memory that only this process shall pay.
    from rpxy_l4.admin.main import run

    return run(channel, slab, workers, listening)


def _print_version(*, verbose: bool, config: Path | None) -> None:
    from rpxy_l4.kernel.path import why_not
    from rpxy_l4.net.kernel import features

    print(f"rpxy-l4 {VERSION}")
    if not verbose:
        return
    snapshot = None if config is None else _load(config)
    rows = [("Python", f"{platform.python_version()} ({platform.python_implementation()})")]
    rows += [(package, _version_of(package)) for package in ("uvloop", "cryptography")]
    rows.append(("data path", "compiled" if _is_compiled() else "interpreted"))
    rows += [("kernel", f"{platform.system()} {platform.release()}"), *features()]
    reason = why_not()
    rows.append(("kernel path", _yes_unless(reason)))
    if reason is None and snapshot is not None:
        rows.append(("- UDP flows", _yes_unless(snapshot.why_udp_stays)))
        rows.append(("- TCP", _yes_unless(snapshot.why_tcp_stays)))
    for name, value in rows:
        print(f"{name + ':':<14} {value}")


def _yes_unless(reason: str | None) -> str:
    return "yes" if reason is None else f"no: {reason}"


def _is_compiled() -> bool:
    from importlib.util import find_spec

    spec = find_spec("rpxy_l4.workers.relay")
    return spec is not None and not (spec.origin or "").endswith(".py")


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
