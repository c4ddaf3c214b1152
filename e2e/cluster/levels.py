"""A cluster of one level in a run folder: brought up in order, looked at, taken down in the other order."""

import os
import shutil
import subprocess
from pathlib import Path

from cluster import control_plane, debian, full, images, network
from cluster.build import build
from cluster.control_plane import LOOPBACK, ControlPlane, free_port
from cluster.node import Node
from cluster.record import Record
from cluster.running import Cluster
from cluster.say import ClusterError, say, step

PATH_LONGEST = 60


def up(level: str, run: Path) -> Cluster:
    """Bring a cluster up; one that is up already stays as it is. A failure leaves what there is, for a look at the logs."""
    found = Record(run)
    if found:
        return _already(found, level)
    if run.exists() and any(run.iterdir()):
        raise ClusterError(f"{run} is neither empty nor a cluster's; `down` removes the folder, so it must be its own")
    if level == "full":
        _check_machine(run)
    binaries = build(level)
    cluster = Cluster(run, binaries)
    given = [*images.supporting(), *images.components()] if level == "full" else []
    with step(f"level {level} is up, in all"):
        run.mkdir(parents=True, exist_ok=True)
        record = Record(run)
        record.keep(level=level, binaries=str(binaries))
        if level == "full":
            full.start(record, cluster, given)
        else:
            ControlPlane(record, binaries, LOOPBACK, free_port(), whole=False).start()
        record.keep(up=True)
    return cluster


def load(run: Path, tag: str | None) -> None:
    """Give the cluster in ``run`` our images as the working tree has them now."""
    record = Record(run)
    if not record.told("up") or record.told("level") != "full":
        raise ClusterError(f"no cluster of level full is up in {run}")
    full.load(Node(record, Path(record.told("binaries"))), images.components(tag))


def down(run: Path) -> None:
    """End and remove what the record tells of. Nothing where there is none."""
    record = Record(run)
    if not record:
        say(f"nothing to take down in {run}")
        return
    with step("taken down, in all"):
        if record.told("level") == "full":
            full.stop(record)
        else:
            control_plane.stop(record)
        with step("files removed"):
            shutil.rmtree(run)


def status(run: Path) -> bool:
    """Say what runs, and whether all of it does."""
    record = Record(run)
    if not record:
        say(f"no cluster in {run}")
        return False
    running, total = record.pids(), 0
    for name in record.told("processes", {}):
        mebibytes = _resident(running[name]) >> 20 if name in running else 0
        total += mebibytes
        say(f"  {name:<18} {f'pid {running[name]}' if name in running else 'dead':<12} {mebibytes:5d} MiB")
    say(f"  {'in all':<18} {'':<12} {total:5d} MiB")
    cluster = Cluster(run, Path(record.told("binaries")))
    if record.told("level") == "full":
        subprocess.run(["kubectl", "get", "nodes,pods", "-A", "-o", "wide"], env=cluster.environ(), check=False)
    return len(running) == len(record.told("processes", {}))


def _already(record: Record, level: str) -> Cluster:
    dead = set(record.told("processes", {})) - set(record.pids())
    if dead or not record.told("up"):
        why = f"{', '.join(sorted(dead))} ended" if dead else "it did not come up"
        raise ClusterError(f"there is half a cluster in {record.run} ({why}); take it down first")
    if record.told("level") != level:
        raise ClusterError(
            f"in {record.run} runs a cluster of level {record.told('level')}; take it down, or give another --run"
        )
    say(f"up already in {record.run}")
    return Cluster(record.run, Path(record.told("binaries")))


def _check_machine(run: Path) -> None:
    debian.install()
    if os.geteuid() != 0:
        raise ClusterError("level full makes network interfaces and mounts: it needs root")
    if len(str(run)) > PATH_LONGEST:
        raise ClusterError(f"{run} is too long for the sockets in it: {PATH_LONGEST} characters at most, see --run")
    if network.bridge_exists():
        raise ClusterError(
            f"a node is up on this machine already (interface {network.BRIDGE}), and there is room for one"
        )


def _resident(pid: int) -> int:
    """Memory of a process, bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
