"""A cluster of one level in a run folder: brought up in order, looked at, taken down in the other order."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import control_plane
from cluster.build import build
from cluster.control_plane import LOOPBACK, ControlPlane
from cluster.record import Record
from cluster.say import ClusterError, say, step


@dataclass(frozen=True, slots=True)
class Cluster:
    """One that runs: what its users need to know."""

    run: Path
    binaries: Path

    @property
    def kubeconfig(self) -> Path:
        """Of its administrator."""
        return self.run / "admin.kubeconfig"

    def shell_line(self) -> str:
        """For ``eval``."""
        return f"export KUBECONFIG={self.kubeconfig} PATH={self.binaries}:$PATH"

    def environ(self) -> dict[str, str]:
        """For commands that talk to it; what they cache goes when the cluster goes."""
        caches = {
            name: str(self.run / "cache")
            for name in ("KUBECACHEDIR", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        }
        return (
            os.environ | caches | {"KUBECONFIG": str(self.kubeconfig), "PATH": f"{self.binaries}:{os.environ['PATH']}"}
        )


def up(level: str, run: Path) -> Cluster:
    """Bring a cluster up; one that is up already stays as it is. A failure leaves what there is, for a look at the logs."""
    found = Record(run)
    if found:
        return _already(found, level)
    if run.exists() and any(run.iterdir()):
        raise ClusterError(f"{run} is neither empty nor a cluster's; `down` removes the folder, so it must be its own")
    binaries = build(level)
    with step(f"level {level}, in all"):
        run.mkdir(parents=True, exist_ok=True)
        record = Record(run)
        record.keep(level=level, binaries=str(binaries))
        _start_api(record, binaries)
    return Cluster(run, binaries)


def down(run: Path) -> None:
    """End and remove what the record tells of. Nothing where there is none."""
    record = Record(run)
    if not record:
        say(f"nothing to take down in {run}")
        return
    with step("taken down, in all"):
        control_plane.stop(record)
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


def _start_api(record: Record, binaries: Path) -> None:
    ControlPlane(record, binaries, LOOPBACK, control_plane.free_port(), whole=False).start()
    record.keep(up=True)


def _resident(pid: int) -> int:
    """Memory of a process, bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
