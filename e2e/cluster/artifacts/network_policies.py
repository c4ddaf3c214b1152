"""The program that enforces NetworkPolicies on nodes of kind's, with one change.

It hands packets to a queue by nftables' expression, which needs CONFIG_NFT_QUEUE. Kernels without
it have iptables' target mostly, so that our build uses that (``policies/xt_queue.go``).
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.artifacts.go_builds import go
from e2e.cluster.run_record import ClusterError, progress_step
from scripts.release.images.components import PREFIX
from scripts.release.images.layers import build_lock

VERSION = "v0.8.0"
IMAGE = f"{PREFIX}/network-policies:{VERSION}"
PROGRAM = "kube-network-policies"
_MODULE = "sigs.k8s.io/kube-network-policies"
_SUM = "h1:dzecRNzdmg+VmHEQWTIjxnCgf412J+8CKHqbKgCiWkk="
_MANIFEST = "network-policies.yaml"
_QUEUE = re.compile(
    r"queue := &expr\.Queue\{Num: uint16\(c\.config\.QueueID\)\}\n\tif c\.config\.FailOpen \{\n[^}]*\}\n"
)
_OURS = "queue := xtQueue(uint16(c.config.QueueID), c.config.FailOpen)\n"


def build() -> Path:
    """Compiles the program where it is not there, and returns its path."""
    target = pinned_versions.binaries("kind_node") / PROGRAM
    if target.exists():
        return target
    with build_lock("cluster-build"), progress_step(PROGRAM), tempfile.TemporaryDirectory() as work:
        sources = _changed_sources(Path(work))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{PROGRAM}.partial")
        go(sources, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(partial), "./cmd")
        shutil.copyfile(sources / "install.yaml", target.with_name(_MANIFEST))
        partial.replace(target)
    return target


def manifests() -> list[dict[str, Any]]:
    """Returns its manifests, with the image of our build."""
    text = (pinned_versions.binaries("kind_node") / _MANIFEST).read_text()
    found = [document for document in yaml.safe_load_all(text) if document]
    for document in found:
        if document["kind"] == "DaemonSet":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            container |= {"image": IMAGE, "imagePullPolicy": "Never"}
    return found


def _changed_sources(work: Path) -> Path:
    """A copy of its module, of which our queue is a part."""
    module = json.loads(go(work, "mod", "download", "-json", f"{_MODULE}@{VERSION}"))
    if module["Sum"] != _SUM:
        raise ClusterError(f"the sources of {_MODULE} are not the pinned ones: {module['Sum']}")
    sources = work / "sources"
    shutil.copytree(module["Dir"], sources, copy_function=shutil.copyfile)
    for folder in (sources, *sources.rglob("*")):  # Go keeps sources read-only
        folder.chmod(0o755)
    package = sources / "pkg" / "networkpolicy"
    shutil.copy(pinned_versions.HERE / "policies" / "xt_queue.go", package)
    controller = package / "controller.go"
    controller.write_text(with_our_queue(controller.read_text()))
    return sources


def with_our_queue(source: str) -> str:
    """Returns the program's controller with our queue. Raises ClusterError where it has none like
    the one that we replace."""
    changed, places = _QUEUE.subn(_OURS, source)
    if places == 0:
        raise ClusterError(f"{_MODULE} {VERSION} makes its queue in another way")
    return changed
