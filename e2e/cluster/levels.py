"""A cluster of one level in a run folder: brought up in order, looked at, taken down in the other order."""

import os
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from cluster import control_plane, debian, full, images, kind, network, pins
from cluster.build import build, compile_missing, exclusive
from cluster.control_plane import LOOPBACK, ControlPlane, free_port
from cluster.node import Node
from cluster.oci import Image
from cluster.record import Record
from cluster.running import Cluster
from cluster.say import ClusterError, say, step

PATH_LONGEST = 60


def prepare(level: str) -> tuple[Path, list[Image]]:
    """All that takes long, before anything runs: packages, programs, layers. The programs' folder, and the images to give."""
    if level == "full":
        debian.install()
    binaries = build(level)
    given = [images.pause()] if level == "full" else []
    return binaries, given if level == "api" else [*given, images.lws(), *images.given()]


def up(level: str, run: Path) -> Cluster:
    """Bring a cluster up; one that is up already stays as it is. A failure leaves what there is, for a look at the logs.

    A cluster of which nothing runs any more (the machine was started anew, or all that ran on it was ended) is no cluster to look
    at: what is left of it is taken down first.
    """
    with _alone(level):
        found = Record(run)
        if found and found.told("level") != "kind" and not found.pids():
            say(f"nothing of the cluster in {run} runs any more: it is taken down and brought up anew")
            _down(found)
        return _up(level, run)


def _up(level: str, run: Path) -> Cluster:
    found = Record(run)
    if found:
        return _already(found, level)
    if run.exists() and any(run.iterdir()):
        raise ClusterError(f"{run} is neither empty nor a cluster's; `down` removes the folder, so it must be its own")
    if level == "full":
        _check_machine(run)
    elif level == "kind":
        kind.check()
    binaries, given = prepare(level)
    cluster = Cluster(run, binaries)
    with step(f"level {level} is up, in all"):
        run.mkdir(parents=True, exist_ok=True)
        record = Record(run)
        record.keep(level=level, binaries=str(binaries))
        match level:
            case "full":
                full.start(record, cluster, given)
            case "kind":
                kind.start(cluster, given)
            case _:
                ControlPlane(record, binaries, LOOPBACK, free_port(), whole=False).start()
        record.keep(up=True)
    return cluster


def load(run: Path, tag: str | None) -> None:
    """Give the cluster in ``run`` our images as the working tree has them now."""
    record = Record(run)
    if not record.told("up") or record.told("level") == "api":
        raise ClusterError(f"no cluster that runs pods is up in {run}")
    given = images.given(tag)
    if record.told("level") == "kind":
        kind.load(run, given)
    else:
        full.load(Node(record, Path(record.told("binaries"))), given)


def measure(run: Path) -> None:
    """Add metrics-server to the cluster in ``run``."""
    record = Record(run)
    if not record.told("up") or record.told("level") != "full":
        raise ClusterError(f"no cluster of level full is up in {run}")
    compile_missing([pins.METRICS])
    full.measure(record, Cluster(run, Path(record.told("binaries"))))


def down(run: Path) -> None:
    """End and remove what the record tells of. Nothing where there is none."""
    record = Record(run)
    if not record:
        say(f"nothing to take down in {run}")
        return
    with _alone(str(record.told("level"))):
        _down(record)


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
    if record.told("level") != "api":
        subprocess.run(["kubectl", "get", "nodes,pods", "-A", "-o", "wide"], env=cluster.environ(), check=False)
    return len(running) == len(record.told("processes", {}))


def _down(record: Record) -> None:
    with step("taken down, in all"):
        match record.told("level"):
            case "full":
                full.stop(record)
            case "kind":
                kind.stop()
            case _:
                control_plane.stop(record)
        with step("files removed"):
            shutil.rmtree(record.run)


def _alone(level: str) -> AbstractContextManager[None]:
    """Of the levels with a node one is brought up or taken down at a time; those of the API alone have nothing in common."""
    return nullcontext() if level == "api" else exclusive("node")


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
