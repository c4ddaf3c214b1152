"""Tools of the chart's tests that need no cluster: helm, Prometheus' promtool, Kubernetes' OpenAPI
schemas.

promtool is compiled like all other programs, without its service discovery. The schemas of a
release are OpenAPI files in its sources. Go fetches these and checks them by the hash below; the
files about kinds in charts are kept.
"""

import json
import shutil
import tempfile
from pathlib import Path

from e2e.cluster.artifacts import go_builds, pinned_versions
from e2e.cluster.artifacts.go_builds import assets, compile_missing, path_of
from e2e.cluster.run_record import ClusterError, progress_step
from scripts.release.images.layers import build_lock

RELEASES = {
    "v1.35.4": "h1:o/8dBC/pHVpYoGV4OAIytAlNPZbdYVTXJHoYvXC4qzM=",
    pinned_versions.KUBERNETES: "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=",
}
"""Release → the hash of its sources."""
OPENAPI_FILES = (
    *("api__v1", "apis__apps__v1", "apis__autoscaling__v2", "apis__networking.k8s.io__v1", "apis__policy__v1"),
    *(
        "apis__rbac.authorization.k8s.io__v1",
        "apis__apiextensions.k8s.io__v1",
        "apis__admissionregistration.k8s.io__v1",
    ),
)
"""The files that are kept."""


def build_tools() -> dict[str, str]:
    """Make what is missing. Name → path: ``helm``, ``promtool``, and a folder for each release."""
    compile_missing([pinned_versions.HELM_PROGRAM, pinned_versions.PROMTOOL])
    for release in RELEASES:
        _fetch_openapi(release)
    return paths()


def build_tools_for_tests() -> None:
    """Make everything that ``make test`` runs against: ``make``, with etcd, kube-apiserver and
    kubectl where none are given."""
    api = pinned_versions.API if assets() == pinned_versions.binaries() else ()
    compile_missing([*api, pinned_versions.HELM_PROGRAM, pinned_versions.PROMTOOL])
    build_tools()


def are_built() -> bool:
    return all(Path(path).exists() for path in paths().values())


def paths() -> dict[str, str]:
    """Returns the path of each tool, whether or not it is there."""
    found = {
        program.name: str(path_of(program)) for program in (pinned_versions.HELM_PROGRAM, pinned_versions.PROMTOOL)
    }
    return found | {release: str(_folder(release)) for release in RELEASES}


def _folder(release: str) -> Path:
    return pinned_versions.cache_folder() / f"openapi-{release}-{len(OPENAPI_FILES)}"


def _fetch_openapi(release: str) -> None:
    target = _folder(release)
    if target.exists():
        return
    with (
        build_lock("cluster-openapi"),
        progress_step(f"OpenAPI of {release}"),
        tempfile.TemporaryDirectory() as nowhere,
    ):
        if target.exists():
            return
        module = json.loads(go_builds.go(Path(nowhere), "mod", "download", "-json", f"k8s.io/kubernetes@{release}"))
        if module["Sum"] != RELEASES[release]:
            raise ClusterError(f"the sources of {release} are not the pinned ones: {module['Sum']}")
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in OPENAPI_FILES:
            source = Path(module["Dir"]) / "api" / "openapi-spec" / "v3" / f"{name}_openapi.json"
            (partial / f"{name}.json").write_bytes(source.read_bytes())
        partial.replace(target)
