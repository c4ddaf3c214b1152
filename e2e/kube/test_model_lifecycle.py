"""The life of a model on a cluster: installed, served, changed in every way, and removed.

The tests are in the order of the story. Each can run alone and installs what it needs.
"""

import time

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads import client_pods
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import KINDS, HelmRelease
from e2e.kube.workloads.lifecycle_changes import LifecycleChanges, run_lifecycle_changes
from e2e.kube.workloads.manifests import image, model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.reports import ReportLine

pytestmark = pytest.mark.lane("changes")

RATE, TOKENS, STILL = (20.0, 200, 40.0) if client_pods.FULL else (2.0, 60, 4.0)


def served(here: Kubectl, release: HelmRelease, name: str, replicas: int = 1) -> tuple[ClientPod, DeployedModel]:
    """A model that serves, and a client of it."""
    here.apply(paced_engine())
    here.apply(model(name, replicas=replicas))
    client, found = ClientPod(here, release).start(), DeployedModel(here, name)
    client.first_token(name)
    found.wait_until_settled(pods=replicas)
    return client, found


@pytest.mark.lane("installation", position=10)
@pytest.mark.load
def test_a_model_is_served_soon_after_it_is_applied(here: Kubectl, empty: HelmRelease) -> None:
    begun = time.monotonic()
    empty.install()
    ready = time.monotonic()
    client = ClientPod(here, empty).start()
    applied = time.time()
    here.apply(paced_engine())
    here.apply(model("tiny"))
    first = client.first_token("tiny") - applied
    found = DeployedModel(here, "tiny")
    found.wait_until_settled(pods=1)
    seconds = {"installation": ready - begun, "apply_to_first_token": first}
    bar = ReportLine("from apply to the first streamed token: at most 30 s", round(first, 1), first <= 30.0)
    client_pods.record_result("first_token", [bar], seconds={name: round(value, 1) for name, value in seconds.items()})
    empty.upgrade(test={"model": f"{here.namespace}/tiny"})
    assert "completion 200" in empty.test()
    shown = here.run("get", "modeldeployment", "tiny").splitlines()[1].split()
    assert shown[:3] == ["tiny", "tiny", "1/1"]


@pytest.mark.lane("installation", position=20)
@pytest.mark.load
@pytest.mark.timeout(1_200, func_only=True)
def test_nothing_is_lost_while_everything_moves(here: Kubectl, forgetting: HelmRelease) -> None:
    client, found = served(here, forgetting, "busy", replicas=2)
    moves = LifecycleChanges(forgetting, client, found, image("sim", "next"))
    figures = run_lifecycle_changes(moves, rate=RATE, tokens=TOKENS, still=STILL)
    lost, outcomes = figures["failures"], figures["outcomes"]
    bars = [
        ReportLine("every stream is whole", outcomes, lost == [] and set(outcomes) == {"complete"}),
        ReportLine(f"a constant {RATE:g} streams a second", figures["per_second"], figures["per_second"] > 0.98 * RATE),
    ]
    client_pods.record_result("under_load", bars, **figures)
    assert lost == []


def test_a_model_goes_while_the_operator_is_away_and_ends_what_it_began(
    here: Kubectl, installation: HelmRelease
) -> None:
    client, _ = served(here, installation, "leaving")
    installation.here.run("scale", "deployment/fairlead-operator", "--replicas=0")
    try:
        installation.here.wait("delete", "pods", "-l", "app.kubernetes.io/component=operator")
        answered = client.begin("leaving", tokens=100)
        here.run("delete", "modeldeployment", "leaving", "--timeout=20s")
        eventually("the gateway knows it no more", lambda: client.send("leaving").status == 404)
        got = answered()
        assert (got.status, got.text.rstrip()[-12:]) == (200, "data: [DONE]")
        kinds = "deployments,pods,services,serviceaccounts,poddisruptionbudgets,networkpolicies,controllerrevisions"
        labels = ("-l", "fairlead.io/model=leaving")
        eventually("its children are gone", lambda: not here.get(kinds, *labels)["items"], seconds=120)
    finally:
        installation.here.run("scale", "deployment/fairlead-operator", "--replicas=2")
        installation.here.wait_for_rollout("deployment/fairlead-operator")


def test_engines_serve_on_without_fairlead_and_are_taken_on_by_the_next_installation(
    here: Kubectl, installation: HelmRelease
) -> None:
    client, found = served(here, installation, "staying", replicas=2)
    before = found.pods()
    installation.uninstall()
    assert found.get()["spec"]
    asked = "import urllib.request as u; print(u.urlopen('http://staying-main/v1/models', timeout=10).status)"
    assert here.python("deployment/staying-main", asked).strip() == "200"
    installation.install()
    client = ClientPod(here, installation).start()
    client.first_token("staying")
    assert found.wait_until_settled(pods=2).keys() == before.keys()


def test_a_backup_put_into_an_empty_cluster_serves(here: Kubectl, installation: HelmRelease) -> None:
    served(here, installation, "kept", replicas=1)
    backup = here.run("get", ",".join(KINDS), "-o", "yaml")
    begun = time.monotonic()
    installation.remove()
    client_pods.record_result("removal", [], seconds=round(time.monotonic() - begun, 1))
    labels = ("-l", "app.kubernetes.io/managed-by=fairlead")
    eventually("the engines are gone", lambda: not here.get("pods", *labels)["items"], seconds=120)
    installation.install()
    here.run("apply", "-f", "-", given=backup)
    client = ClientPod(here, installation).start()
    client.first_token("kept")
    DeployedModel(here, "kept").wait_until_settled(pods=1)
