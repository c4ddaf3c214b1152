"""A cluster for the tests of this folder: the one that KUBECONFIG names if it is made for tests,
else one of our own.

The tests see nothing but KUBECONFIG, so they run on kind as well (``make e2e PROVIDER=kind``,
docs/contributing/cluster-from-source.md). A user's own cluster of kind's is given our images and
LeaderWorkerSet. A cluster of our own that was up before stays up, and gets the images of now.
Without either, the tests fail: skipped silently they would prove nothing.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from e2e.cluster import levels
from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.nodes import kind_cluster
from e2e.cluster.nodes.node import NODES
from e2e.cluster.run_record import RunningCluster, RunRecord
from e2e.kube.cluster_access.kubectl import ApiReader, Kubectl, temporary_namespace
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.resource_locks import INSTALLATION_LOCK, MEMORY_LOCK, SETUP_LOCK, file_lock

ROOT = Path(__file__).resolve().parents[2]

KIND = "kind-"
TEST_CONTEXTS = ("fairlead-e2e", KIND)
"""Contexts that tests may do to whatever they want begin like this."""


@pytest.fixture(scope="session")
def kubectl(session: str) -> Iterator[Kubectl]:
    """A ``kubectl`` with the rights of the cluster's administrator."""
    environ = _environ(session)
    with closing(ApiReader(environ)) as reader:
        yield Kubectl(environ, reader)


def _environ(session: str) -> Mapping[str, str]:
    """The environment in which a cluster for tests is named."""
    if "KUBECONFIG" in os.environ:
        asked = ["kubectl", "config", "current-context"]
        context = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if not context.startswith(TEST_CONTEXTS):
            pytest.fail(
                f"KUBECONFIG names {context!r}, which is no cluster for tests: unset it, or name kind's", pytrace=False
            )
        return _kind_environ(session, context) if context.startswith(KIND) else os.environ
    with file_lock(SETUP_LOCK, alone=True):
        return _own_cluster(session).environ()


def _kind_environ(session: str, context: str) -> Mapping[str, str]:
    """A user's cluster of kind's, with the images of now, given once in a session."""
    run = pinned_versions.cache_folder() / "kind"
    with file_lock(SETUP_LOCK, alone=True):
        record = RunRecord(run)
        if record.get("given") == session:
            return RunningCluster(run, Path(record.get("binaries"))).environ()
        flattened = ["kubectl", "config", "view", "--minify", "--flatten", "--raw"]
        kubeconfig = subprocess.run(flattened, capture_output=True, text=True, check=True).stdout
        cluster = levels.equip_kind(context, kubeconfig, run)
        record.update(given=session, binaries=str(cluster.binaries))
        return cluster.environ()


def _own_cluster(session: str) -> RunningCluster:
    """The cluster of this machine, with the images of now. Who brings it up writes down for which
    session, which takes it down."""
    run = levels.run_of_tests()
    before = levels.is_up(run)
    try:
        cluster: RunningCluster = levels.up(levels.level_of_tests(), run)
    except BaseException:
        if not before:
            levels.down(run)
        raise
    if not before:
        RunRecord(run).update(session=session)
    elif RunRecord(run).get("given") != session:
        levels.load_images(run, None)  # the working tree may have moved on since
    RunRecord(run).update(given=session)
    return cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit is the test's; what it stands on (a cluster from nothing) and waits for (other
    tests) may take longer."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keeps what became of the test, for the fixture below."""
    report = yield
    setattr(item, f"report_{report.when}", report)  # type: ignore[attr-defined]
    return report


@pytest.fixture
def here(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """A ``kubectl`` in a namespace of this test, which enforces the strictest pod security and is
    deleted afterwards."""
    with temporary_namespace(kubectl) as inside:
        try:
            yield inside
        finally:
            report = getattr(request.node, "report_call", None)
            if report is None or report.failed:
                inside.dump(ROOT / "out" / "e2e" / request.node.name)
                HelmRelease(kubectl).here.dump(ROOT / "out" / "e2e" / request.node.name / "fairlead")


@pytest.fixture
def second_node(kubectl: Kubectl) -> Iterator[str]:
    """The name of a node that this test has for itself: no pod comes there that does not tolerate
    its taint. Level full adds one, on kind it is the second worker."""
    run = Path(kubectl.environ["KUBECONFIG"]).parent
    level = RunRecord(run).get("level")
    if level == "kind":
        with kind_cluster.reserved_node(RunningCluster(run, Path(RunRecord(run).get("binaries")))) as node:
            yield node
        return
    if level != "full":
        pytest.skip("nodes are taken from the tests' own clusters alone")
    try:
        levels.add_node(run)
        yield NODES[1]
    finally:
        levels.remove_node(run)


@pytest.fixture
def installed(kubectl: Kubectl) -> Iterator[HelmRelease]:
    """Fairlead, installed by its chart where the tests before have not left it so. It stays, for
    the tests that follow."""
    with file_lock(INSTALLATION_LOCK, alone=False):
        release = HelmRelease(kubectl)
        with file_lock(SETUP_LOCK, alone=True):
            release.ensure()
        yield release


@pytest.fixture
def remembering(installed: HelmRelease) -> Iterator[HelmRelease]:
    """The same; its pods stay, for tests that ask what they remember or whether all are ready."""
    with file_lock(MEMORY_LOCK, alone=False):
        yield installed


@pytest.fixture
def forgetting(installed: HelmRelease) -> Iterator[HelmRelease]:
    """The same, for tests that replace its pods and lose no request by it."""
    with file_lock(MEMORY_LOCK, alone=True):
        yield installed


@pytest.fixture
def empty(kubectl: Kubectl) -> Iterator[HelmRelease]:
    """The same where nothing of it is there, for a test that installs it."""
    with file_lock(INSTALLATION_LOCK, alone=True):
        release = HelmRelease(kubectl)
        release.remove()
        yield release


@pytest.fixture
def installation(kubectl: Kubectl) -> Iterator[HelmRelease]:
    """The same, for tests that change or remove it: no other test uses it meanwhile."""
    with file_lock(INSTALLATION_LOCK, alone=True):
        release = HelmRelease(kubectl)
        release.ensure()
        yield release
