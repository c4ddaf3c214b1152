"""The whole of it, as a platform team lives it: from an empty cluster to a model that is served, through every change, to the end.

The tests stand in the order of the story. Each can be run alone: what it needs is installed where it is not there.
"""

import time

import pytest
from kube import report
from kube.clients import Client
from kube.kubectl import Kubectl, eventually
from kube.manifests import image, model, paced
from kube.models import Model
from kube.moving import Moves, everything_moves
from kube.release import KINDS, Release

from fairlead_testing.reports import ReportLine

RATE, TOKENS, STILL = (20.0, 200, 40.0) if report.FULL else (2.0, 60, 4.0)


def served(here: Kubectl, release: Release, name: str, replicas: int = 1) -> tuple[Client, Model]:
    """A model that serves, and a client of it."""
    here.apply(paced())
    here.apply(model(name, replicas=replicas))
    client, found = Client(here, release).start(), Model(here, name)
    client.first_token(name)
    found.settled(pods=replicas)
    return client, found


def test_a_model_is_served_soon_after_it_is_applied(here: Kubectl, empty: Release) -> None:
    begun = time.monotonic()
    empty.install()
    ready = time.monotonic()
    client = Client(here, empty).start()
    applied = time.time()
    here.apply(paced())
    here.apply(model("tiny"))
    first = client.first_token("tiny") - applied
    found = Model(here, "tiny")
    found.settled(pods=1)
    seconds = {"installation": ready - begun, "apply_to_first_token": first}
    bar = ReportLine("from apply to the first streamed token: at most 30 s", round(first, 1), first <= 30.0)
    report.record("first_token", [bar], seconds={name: round(value, 1) for name, value in seconds.items()})
    empty.upgrade(test={"model": f"{here.namespace}/tiny"})
    assert "completion 200" in empty.test()
    shown = here.run("get", "modeldeployment", "tiny").splitlines()[1].split()
    assert shown[:3] == ["tiny", "tiny", "1/1"]


@pytest.mark.timeout(1_200, func_only=True)
def test_nothing_is_lost_while_everything_moves(here: Kubectl, installed: Release) -> None:
    client, found = served(here, installed, "busy", replicas=2)
    moves = Moves(installed, client, found, image("sim", "next"))
    figures = everything_moves(moves, rate=RATE, tokens=TOKENS, still=STILL)
    lost, outcomes = figures["failures"], figures["outcomes"]
    bars = [
        ReportLine("every stream is whole", outcomes, lost == [] and set(outcomes) == {"complete"}),
        ReportLine(f"a constant {RATE:g} streams a second", figures["per_second"], figures["per_second"] > 0.98 * RATE),
    ]
    report.record("under_load", bars, **figures)
    assert lost == []


def test_a_model_goes_while_the_operator_is_away_and_ends_what_it_began(here: Kubectl, installation: Release) -> None:
    client, _ = served(here, installation, "leaving")
    installation.here.run("scale", "deployment/fairlead-operator", "--replicas=0")
    try:
        installation.here.wait("delete", "pods", "-l", "app.kubernetes.io/component=operator")
        answered = client.begun("leaving", tokens=100)
        here.run("delete", "modeldeployment", "leaving", "--timeout=20s")
        eventually("the gateway knows it no more", lambda: client.ask("leaving").status == 404)
        got = answered()
        assert (got.status, got.text.rstrip()[-12:]) == (200, "data: [DONE]")
        kinds = "deployments,pods,services,serviceaccounts,poddisruptionbudgets,networkpolicies,controllerrevisions"
        labels = ("-l", "fairlead.io/model=leaving")
        eventually("its children are gone", lambda: not here.get(kinds, *labels)["items"], seconds=120)
    finally:
        installation.here.run("scale", "deployment/fairlead-operator", "--replicas=2")
        installation.here.rolled_out("deployment/fairlead-operator")


def test_engines_serve_on_without_fairlead_and_are_taken_on_by_the_next_installation(
    here: Kubectl, installation: Release
) -> None:
    client, found = served(here, installation, "staying", replicas=2)
    before = found.pods()
    installation.uninstall()
    assert found.get()["spec"]
    asked = "import urllib.request as u; print(u.urlopen('http://staying-main/v1/models', timeout=10).status)"
    assert here.python("deployment/staying-main", asked).strip() == "200"
    installation.install()
    client = Client(here, installation).start()
    client.first_token("staying")
    assert found.settled(pods=2).keys() == before.keys()


def test_a_backup_put_into_an_empty_cluster_serves(here: Kubectl, installation: Release) -> None:
    served(here, installation, "kept", replicas=1)
    backup = here.run("get", ",".join(KINDS), "-o", "yaml")
    begun = time.monotonic()
    installation.remove()
    report.record("removal", [], seconds=round(time.monotonic() - begun, 1))
    labels = ("-l", "app.kubernetes.io/managed-by=fairlead")
    eventually("the engines are gone", lambda: not here.get("pods", *labels)["items"], seconds=120)
    installation.install()
    here.run("apply", "-f", "-", given=backup)
    client = Client(here, installation).start()
    client.first_token("kept")
    Model(here, "kept").settled(pods=1)
