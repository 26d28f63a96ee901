"""A Slurm of one node on this machine, of Debian's slurm-wlm and munge, for as long as it is used.

``python tests/slurm_node.py COMMAND...`` runs a command in it. Its files are in a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

PROGRAMS: Final = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue")
PATH: Final = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"

PATIENCE: Final = 60.0
"""Seconds that a daemon has to begin or to end."""

CONFIGURATION: Final = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""Nothing in it needs cgroups, which a container keeps from us, or a data base for accounting."""


def missing() -> str | None:
    """Why there can be no node here, if so."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return "only root can start a node" if os.geteuid() != 0 else None


@contextlib.contextmanager
def node() -> Iterator[dict[str, str]]:
    """Starts the daemons, and in the end stops them and their jobs; gives the variables to set."""
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # or munged finds its socket closed to others
        env = {"PATH": PATH, "SLURM_CONF": f"{folder}/slurm.conf"}
        _configure(folder)
        _run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], env).check_returncode()
        names = ("key-file", "socket", "pid-file", "seed-file")
        files = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in names]
        stack.enter_context(_daemon(["munged", "--foreground", "--force", *files], folder, env))
        _wait((folder / "munge.socket").exists, folder)
        stack.enter_context(_daemon(["slurmctld", "-D", "-c"], folder, env))
        stack.enter_context(_daemon(["slurmd", "-D"], folder, env))
        _wait(lambda: _run(["sinfo", "-h", "-o", "%T"], env).stdout == "idle\n", folder)
        try:
            yield env
        finally:
            _run(["scancel", "--user=root"], env)
            _wait(lambda: not _run(["squeue", "-h"], env).stdout, folder)


def _configure(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        control, port = (each.getsockname()[1] for each in sockets)
    host = socket.gethostname().split(".")[0]
    facts = {"folder": folder, "host": host}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**facts, control=control, node=port))
    said = _run(["slurmd", "-V"], {"PATH": PATH}).stdout  # slurm-wlm 22.05.8
    version = tuple(map(int, re.findall(r"\d+", said)[:2]))
    plugin = "disabled" if version >= (23, 11) else "cgroup/v1"  # which no job then uses
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()


def _run(words: Sequence[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, **env}
    return subprocess.run(words, env=whole, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _daemon(command: Sequence[str], folder: Path, env: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}.log").open("wb") as log:
        out: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(command, env={**os.environ, **env}, **out)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > end:
            logs = [f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log"))]
            raise TimeoutError("\n".join(["the node is not ready", *logs]))
        time.sleep(0.1)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with node() as variables:
        done = subprocess.run(sys.argv[1:], env={**os.environ, **variables}, check=False)
    sys.exit(done.returncode)
