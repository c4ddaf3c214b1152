"""A cluster of one level in a run folder: brought up in order, looked at, taken down in the other
order."""

import os
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from e2e.cluster.artifacts import image_set, pinned_versions
from e2e.cluster.artifacts.go_builds import build, compile_missing
from e2e.cluster.nodes import control_plane, full_level, kind_cluster, network
from e2e.cluster.nodes.control_plane import LOOPBACK, ControlPlane
from e2e.cluster.run_record import ClusterError, RunningCluster, RunRecord, print_progress, progress_step
from fairlead_testing.processes import unused_port
from scripts.release.images.layers import OciImage, build_lock

MAX_PATH_LENGTH = 60
PROVIDER = "FAIRLEAD_E2E_PROVIDER"
"""The variable that has tests run on kind, by this word; without it, they run on level *full*."""


def level_of_tests() -> str:
    """Returns the level of the cluster that tests bring up.

    Raises ClusterError where its variable says another word than ``kind``.
    """
    provider = os.environ.get(PROVIDER, "")
    if provider not in ("", "kind"):
        raise ClusterError(f"there is no provider {provider!r}: kind, or nothing for a cluster of our own")
    return provider or "full"


def run_of_tests() -> Path:
    return pinned_versions.cache_folder() / ("kind-cluster" if level_of_tests() == "kind" else "cluster")


def prepare(level: str) -> tuple[Path, list[OciImage]]:
    """All that takes long, before anything runs: packages, programs, layers. The programs' folder,
    and the images to give."""
    if level == "full":
        pinned_versions.install(pinned_versions.DEBIAN)
    binaries = build(level)
    given = [image_set.pause()] if level == "full" else []
    return binaries, given if level == "api" else [*given, image_set.lws(), *image_set.write_set()]


def up(level: str, run: Path) -> RunningCluster:
    """Starts a cluster; a running one stays as it is.

    After a failure its parts stay, so that their logs can be read. If no process of a cluster
    runs any more, after a restart of the machine for example, the rest is removed first.
    """
    with _check_alone(level):
        found = RunRecord(run)
        if found and found.get("level") != "kind" and not found.pids():
            print_progress(f"nothing of the cluster in {run} runs any more: it is removed and started again")
            _down(found)
        return _up(level, run)


def _up(level: str, run: Path) -> RunningCluster:
    found = RunRecord(run)
    if found:
        return _running_cluster(found, level)
    if run.exists() and any(run.iterdir()):
        raise ClusterError(f"{run} is neither empty nor a cluster's; `down` removes the folder, so it must be its own")
    if level == "full":
        _check_machine(run)
    binaries, given = prepare(level)
    cluster = RunningCluster(run, binaries)
    with progress_step(f"level {level} is up, in all"):
        run.mkdir(parents=True, exist_ok=True)
        record = RunRecord(run)
        record.update(level=level, binaries=str(binaries))
        match level:
            case "full":
                full_level.start(record, cluster, given)
            case "kind":
                kind_cluster.start(cluster, given)
            case _:
                ControlPlane(record, binaries, LOOPBACK, unused_port(), whole=False).start()
        record.update(up=True)
    return cluster


def is_up(run: Path) -> bool:
    record = RunRecord(run)
    return bool(record.get("up") and (record.get("level") == "kind" or record.pids()))


def load_images(run: Path, tag: str | None) -> None:
    """Give the cluster in ``run`` our images as the working tree has them now."""
    record = RunRecord(run)
    if not record.get("up") or record.get("level") == "api":
        raise ClusterError(f"no cluster that runs pods is up in {run}")
    given = image_set.write_set(tag)
    if record.get("level") == "kind":
        kind_cluster.load_images(run, given)
    else:
        full_level.load_images(record, given)


def equip_kind(context: str, kubeconfig: str, run: Path) -> RunningCluster:
    """Gives a user's own cluster of kind's what the tests need: our images of now, LeaderWorkerSet.

    context: `kind-NAME`. kubeconfig: of this context alone, with all that it refers to.
    """
    binaries, given = prepare("kind")
    run.mkdir(parents=True, exist_ok=True)
    cluster = RunningCluster(run, binaries)
    cluster.kubeconfig.touch(mode=0o600)
    cluster.kubeconfig.write_text(kubeconfig)
    kind_cluster.equip(cluster, context.removeprefix("kind-"), given)
    return cluster


def memory_usage(run: Path) -> None:
    """Add metrics-server to the cluster in ``run``."""
    full = _full_cluster(run)
    compile_missing([pinned_versions.METRICS])
    full_level.memory_usage(*full)


def add_node(run: Path) -> None:
    with _check_alone("full"):
        full_level.add_node(*_full_cluster(run))


def remove_node(run: Path) -> None:
    with _check_alone("full"):
        full_level.remove_node(*_full_cluster(run))


def _full_cluster(run: Path) -> tuple[RunRecord, RunningCluster]:
    record = RunRecord(run)
    if not record.get("up") or record.get("level") != "full":
        raise ClusterError(f"no cluster of level full is up in {run}")
    return record, RunningCluster(run, Path(record.get("binaries")))


def down(run: Path) -> None:
    """Stops and removes what the record names. Does nothing where there is none."""
    record = RunRecord(run)
    if not record:
        print_progress(f"nothing to take down in {run}")
        return
    with _check_alone(str(record.get("level"))):
        _down(record)


def status(run: Path) -> bool:
    """Say what runs, and whether all of it does."""
    record = RunRecord(run)
    if not record:
        print_progress(f"no cluster in {run}")
        return False
    running, total = record.pids(), 0
    for name in record.get("processes", {}):
        mebibytes = _resident_bytes(running[name]) >> 20 if name in running else 0
        total += mebibytes
        print_progress(f"  {name:<18} {f'pid {running[name]}' if name in running else 'dead':<12} {mebibytes:5d} MiB")
    print_progress(f"  {'in all':<18} {'':<12} {total:5d} MiB")
    cluster = RunningCluster(run, Path(record.get("binaries")))
    if record.get("level") != "api":
        subprocess.run(["kubectl", "get", "nodes,pods", "-A", "-o", "wide"], env=cluster.environ(), check=False)
    return len(running) == len(record.get("processes", {}))


def _down(record: RunRecord) -> None:
    with progress_step("taken down, in all"):
        match record.get("level"):
            case "full":
                full_level.stop(record)
            case "kind":
                kind_cluster.stop()
            case _:
                control_plane.stop(record)
        with progress_step("files removed"):
            shutil.rmtree(record.run)


def _check_alone(level: str) -> AbstractContextManager[None]:
    """Locks the levels with a node, of which one is started or stopped at a time; levels of the API
    alone are independent."""
    return nullcontext() if level == "api" else build_lock("cluster-node")


def _running_cluster(record: RunRecord, level: str) -> RunningCluster:
    dead = set(record.get("processes", {})) - set(record.pids())
    if dead or not record.get("up"):
        why = f"{', '.join(sorted(dead))} ended" if dead else "it did not come up"
        raise ClusterError(f"there is half a cluster in {record.run} ({why}); take it down first")
    if record.get("level") != level:
        raise ClusterError(
            f"in {record.run} runs a cluster of level {record.get('level')}; take it down, or give another --run"
        )
    print_progress(f"up already in {record.run}")
    return RunningCluster(record.run, Path(record.get("binaries")))


def _check_machine(run: Path) -> None:
    if os.geteuid() != 0:
        raise ClusterError("level full makes network interfaces and mounts: it needs root")
    if len(str(run)) > MAX_PATH_LENGTH:
        raise ClusterError(f"{run} is too long for the sockets in it: {MAX_PATH_LENGTH} characters at most, see --run")
    if network.bridge_exists():
        raise ClusterError(
            f"a node is up on this machine already (interface {network.BRIDGE}), and there is room for one"
        )


def _resident_bytes(pid: int) -> int:
    """Memory of a process, bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
