"""A cluster for the tests of this folder: the one that KUBECONFIG names if it is made for tests, else one of our own.

The tests see nothing but KUBECONFIG, so they run on kind as well (``e2e/kind.yaml``, docs/guides/cluster.md). A cluster of our own
that was up before stays up, and gets the images of now. Without either, the tests fail: skipped silently they would prove nothing.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "e2e"))

from cluster import levels, pins  # noqa: E402
from cluster.record import Record  # noqa: E402
from cluster.running import Cluster  # noqa: E402
from kube.kubectl import Kubectl  # noqa: E402
from kube.reading import Reader  # noqa: E402
from kube.release import Release  # noqa: E402
from locks import BEGINNING, FAIRLEAD, held  # noqa: E402

OURS = ("fairlead-e2e", "kind-")
"""Contexts that tests may do to whatever they want begin like this."""


@pytest.fixture(scope="session")
def kubectl(session: str) -> Iterator[Kubectl]:
    """``kubectl`` at the cluster, as its administrator."""
    environ = _environ(session)
    with closing(Reader(environ)) as reader:
        yield Kubectl(environ, reader)


def _environ(session: str) -> Mapping[str, str]:
    """The environment in which a cluster for tests is named."""
    if "KUBECONFIG" in os.environ:
        asked = ["kubectl", "config", "current-context"]
        context = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        if not context.startswith(OURS):
            pytest.fail(
                f"KUBECONFIG names {context!r}, which is no cluster for tests: unset it, or name kind's", pytrace=False
            )
        return os.environ
    with held(BEGINNING, alone=True):
        return _ours(session).environ()


def _ours(session: str) -> Cluster:
    """The cluster of this machine, with the images of now. Who brings it up writes down for which session, which takes it down."""
    run = pins.cache_folder() / "cluster"
    before = bool(Record(run).told("up") and Record(run).pids())
    try:
        cluster: Cluster = levels.up("full", run)
    except BaseException:
        if not before:
            levels.down(run)
        raise
    if not before:
        Record(run).keep(session=session)
    elif Record(run).told("given") != session:
        levels.load(run, None)  # the working tree may have moved on since
    Record(run).keep(given=session)
    return cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit is the test's; what it stands on (a cluster from nothing) and waits for (other tests) may take longer."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(300, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keeps what became of the test, for the fixture below."""
    report = yield
    setattr(item, f"report_{report.when}", report)  # type: ignore[attr-defined]
    return report


@pytest.fixture
def here(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """``kubectl`` in a namespace of this test, which holds its pods to the strictest standard and goes afterwards."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"generateName": "e2e-", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    made = kubectl.run("create", "-f", "-", "-o", "jsonpath={.metadata.name}", given=json.dumps(namespace))
    inside = kubectl.within(made)
    try:
        yield inside
    finally:
        report = getattr(request.node, "report_call", None)
        if report is None or report.failed:
            inside.dump(ROOT / "out" / "e2e" / request.node.name)
            Release(kubectl).here.dump(ROOT / "out" / "e2e" / request.node.name / "fairlead")
        # Models first: of a namespace that is deleted the pods go first, and until they have gone its models would keep their names.
        inside.forget_models()
        kubectl.run("delete", "namespace", made, "--wait=false")


@pytest.fixture
def installed(kubectl: Kubectl) -> Iterator[Release]:
    """Fairlead, installed by its chart where the tests before have not left it so. It stays, for the tests that follow."""
    with held(FAIRLEAD, alone=False):
        release = Release(kubectl)
        with held(BEGINNING, alone=True):
            release.ensure()
        yield release


@pytest.fixture
def empty(kubectl: Kubectl) -> Iterator[Release]:
    """The same where nothing of it is there, for a test that installs it."""
    with held(FAIRLEAD, alone=True):
        release = Release(kubectl)
        release.remove()
        yield release


@pytest.fixture
def installation(kubectl: Kubectl) -> Iterator[Release]:
    """The same, for tests that change or remove it: no other test uses it meanwhile."""
    with held(FAIRLEAD, alone=True):
        release = Release(kubectl)
        release.ensure()
        yield release
