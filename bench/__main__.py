"""``python -m bench``: measure, and write what was found."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import contestants, load, machine, measure, report, workloads
from bench.contestants import DIRECT
from bench.document import Document, Measured, from_json
from bench.measure import Field, Settings
from bench.workloads import Workload

_INTERRUPTED: Final = 128 + signal.SIGINT
_TERMINATED: Final = 128 + signal.SIGTERM
RESULTS: Final = Path(__file__).parent / "results"
# With these, everything takes less than ten minutes.
_SECONDS: Final = 0.5
_REPEAT: Final = 3
# Opening the sessions, warming up, ending: of each run, on top of its measured time.
_OVERHEAD: Final = 0.2
# Sessions opened in a second.
_OPENED: Final = 6000.0
# Starting and stopping one contestant.
_START: Final = 0.4


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    options = _parser().parse_args(words)
    if options.list:
        _list(_named(options.program))
        return 0
    if options.report is not None:
        return _rewrite(options.report, options.readme)
    # So that nothing that was started is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        return _measure(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except load.LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the proxy beside others, in one run on one machine."
    )
    names = [each.name for each in contestants.ALL]
    every = [each.name for each in workloads.ALL]
    parser.add_argument("--workload", action="append", choices=every, metavar="NAME", help="only this; repeatable")
    parser.add_argument(
        "--contestant", action="append", choices=[*names, DIRECT], metavar="NAME", help="only this; repeatable"
    )
    parser.add_argument("--repeat", type=int, default=_REPEAT, help="runs of each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="measured time of a run (default %(default)s)")
    parser.add_argument(
        "--program",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the program of a contestant, where it is not found by itself; repeatable",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where results go (%(default)s)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the table and the plot into this page, too")
    parser.add_argument("--report", type=Path, metavar="JSON", help="measure nothing: write the report of a result")
    parser.add_argument("--list", action="store_true", help="list the workloads and the contestants, and stop")
    return parser


def _named(pairs: Sequence[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _list(named: Mapping[str, str]) -> None:
    for workload in workloads.ALL:
        print(f"{workload.name:<28}{workload.text}")
    print()
    for contestant in contestants.ALL:
        program = contestants.find(contestant, named)
        print(f"{contestant.name:<28}{contestant.title}: {program or 'not on this machine'}")
    print(f"{DIRECT:<28}no proxy")


def _measure(options: argparse.Namespace) -> int:
    named = _named(options.program)
    wanted = [each for each in contestants.ALL if not options.contestant or each.name in options.contestant]
    found = {each: contestants.find(each, named) for each in wanted}
    programs = {each: program for each, program in found.items() if program is not None}
    competitors = Field(programs, direct=not options.contestant or DIRECT in options.contestant)
    settings = Settings(options.seconds, options.repeat, measure.available_cores())
    chosen, notes = _choose(options.workload or [], measure.raise_limits(), settings)
    for each, program in found.items():
        if program is None:
            _say(f"{each.title} is not on this machine")
    _say(f"about {_estimate(chosen, competitors, settings):.0f} s")
    began = time.monotonic()
    measure.pin_this_process(settings)
    done = []
    for workload in chosen:
        entries = measure.run(workload, competitors, settings, _say)
        done.append(Measured(workload.name, workload.text, workload.unit, entries))
    now = machine.now()
    document = Document(
        date=now.isoformat(),
        commit=machine.commit(),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        machine=machine.describe() | {"cores": str(len(settings.cores))},
        settings={"seconds": settings.seconds, "repeat": settings.repeat},
        versions={each.name: contestants.version(each, program) for each, program in programs.items()},
        titles={each.name: each.title for each in contestants.ALL},
        missing=[each.name for each, program in found.items() if program is None],
        notes=notes,
        workloads=done,
    )
    path = report.write(document, options.output)
    if options.readme is not None:
        _into_page(document, path, options.readme)
    _say(f"{path} after {time.monotonic() - began:.0f} s")
    return 0


def _choose(names: Sequence[str], descriptors: int, settings: Settings) -> tuple[list[Workload], list[str]]:
    """Return the workloads to run, and a note for each that this machine cannot run."""
    chosen, notes = [], []
    for workload in workloads.ALL:
        if names and workload.name not in names:
            continue
        if workload.descriptors > descriptors:
            notes.append(f"{workload.name} needs {workload.descriptors} descriptors, and {descriptors} are allowed")
        elif workload.workers > len(settings.cores):
            notes.append(f"{workload.name} needs {workload.workers} cores")
        else:
            chosen.append(workload)
    return chosen, notes


def _estimate(chosen: Sequence[Workload], competitors: Field, settings: Settings) -> float:
    total = 0.0
    for workload in chosen:
        number = len(competitors.of(workload))
        each = settings.seconds + _OVERHEAD + workload.load.sessions / _OPENED
        runs = 1 if workload.is_memory else settings.repeat * (2 if workload.latency else 1)
        total += number * _START + runs * max((number + competitors.direct) * each, workload.settle)
    return total


def _rewrite(path: Path, readme: Path | None) -> int:
    document = from_json(path.read_text())
    written = report.write(document, path.parent)
    if readme is not None:
        _into_page(document, written, readme)
    return 0


def _into_page(document: Document, result: Path, page: Path) -> None:
    picture = result.with_suffix(".svg").resolve().relative_to(page.resolve().parent)
    page.write_text(report.insert(page.read_text(), report.short(document, str(picture))))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
