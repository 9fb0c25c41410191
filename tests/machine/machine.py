"""A virtual machine with another kernel and this machine's files, in which a command is run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.peers import missing, run

ROOT: Final = Path(__file__).parents[2]
MACHINES: Final = ROOT / "build/machine"
_STATUS: Final = re.compile(r"^the command ended with ([0-9]+)\r?$", re.MULTILINE)

# It is the first process: where it ends, the kernel panics, and the machine ends, too.
_SECOND: Final = """\
export PATH={path} HOME=/root LANG=C.UTF-8 CI=1 RPXY_L4_EMULATED=1 PYTHONDONTWRITEBYTECODE=1
ulimit -n 65536
ip link set lo up
cd {root}
{command}
echo "the command ended with $?"
echo o >/proc/sysrq-trigger
while :; do :; done
"""


class Ended(NamedTuple):
    status: int | None
    """Of the command; None: the machine ended before it."""
    output: str


def run_in_machine(name: str, folder: Path, *command: str, seconds: float) -> Ended:
    """Run a command in the root of this repository, as root in a machine of :data:`MACHINES`.

    It sees this machine's files as they are; what it writes is gone with the machine. Processors are emulated, and
    several times slower. ``folder`` is for a script. Raises subprocess.TimeoutExpired.
    """
    machine = MACHINES / name
    if not (machine / "root.cpio").exists():
        missing(f"the machine {name!r} (scripts/make-machine makes it)")
    (release,) = (machine / "lib/modules").iterdir()
    script = folder / "second"
    path = shlex.quote(f"{Path(sys.executable).parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    script.write_text(_SECOND.format(path=path, root=shlex.quote(str(ROOT)), command=shlex.join(command)))
    host = ("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap")
    ended = run(
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2", "-m", "2G"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci"),
        *("-kernel", str(machine / "kernel"), "-initrd", str(machine / "root.cpio")),
        *("-append", f"console=ttyS0 quiet mitigations=off panic=-1 -- {release} {script}"),
        *host,
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        timeout=seconds,
    )
    found = _STATUS.findall(ended.stdout)
    return Ended(int(found[-1]) if found else None, ended.stdout.replace("\r\n", "\n"))
