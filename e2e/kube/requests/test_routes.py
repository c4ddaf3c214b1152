"""Routes on a cluster: one is created, split, overridden and deleted; another one has a shadow."""

import json
import time
from collections import Counter
from typing import Any

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually, explain_request, run_fairlead
from e2e.kube.workloads.client_pods import ClientPod, GatewayRequest
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import model, paced_engine, resource


class RouteClient:
    """A pod that asks for names of routes."""

    def __init__(self, client: ClientPod) -> None:
        self._client = client

    def answers(self, name: str, *sessions: str, **headers: str) -> list[list[Any]]:
        """Returns status, target, and model or code of a completion for each session."""
        requests = []
        for session in sessions or ("only",):
            body = {"model": name, "max_tokens": 2, "messages": [{"role": "user", "content": f"Why {session}?"}]}
            fields = {key.replace("_", "-"): value for key, value in headers.items()}
            requests.append(GatewayRequest("/v1/chat/completions", body, {"x-session-id": session, **fields}))
        return [
            [one.status, one.headers.get("x-fairlead-model") if one.status == 200 else None, one.model_or_code()]
            for one in self._client.send_each(requests)
        ]

    def wait(self, name: str, answer: list[Any]) -> None:
        eventually(f"{name} is answered with {answer}", lambda: self.answers(name, *["same"] * 10) == [answer] * 10)


def conditions(here: Kubectl, name: str) -> dict[str, tuple[str, str]]:
    status = here.get("modelroute", name).get("status") or {}
    return {
        condition["type"]: (condition["status"], condition["reason"]) for condition in status.get("conditions") or []
    }


@pytest.mark.lane("requests", position=36)
def test_a_route_is_created_split_overridden_and_deleted(here: Kubectl, remembering: HelmRelease) -> None:
    alias = f"acme-{here.namespace}/assistant"  # names belong to the cluster, where other tests may run
    stable, canary = f"{here.namespace}/stable", f"{here.namespace}/canary"
    here.apply(paced_engine(), model("stable"), model("canary"))
    client = ClientPod(here, remembering).start()
    for name in (stable, canary):
        client.first_token(name)
    routes = RouteClient(client)
    try:
        here.apply(
            resource(
                "ModelRoute",
                "assistant",
                servedNames=[alias],
                targets=[{"model": "stable"}, {"model": "gone", "weight": 0}],
            )
        )
        began = time.time()
        routes.wait(alias, [200, stable, alias])
        assert time.time() - began < 120
        expected = {"Accepted": ("True", "Valid"), "ResolvedRefs": ("True", "Resolved")}
        eventually(
            "its conditions say so",
            lambda: conditions(here, "assistant") == expected,
            describe=lambda: str(conditions(here, "assistant")),
        )
        assert alias in json.dumps(here.get("modelroute", "assistant")["status"])
        assert f"{stable} 1" in here.run("get", "mroute", "assistant")

        override = {"headers": {"x-canary": "yes"}, "targets": [{"model": "canary"}]}
        split = [{"model": "stable"}, {"model": "canary"}]
        here.apply(resource("ModelRoute", "assistant", servedNames=[alias], targets=split, overrides=[override]))
        sessions = [str(number) for number in range(12)]
        eventually(
            "both targets get sessions",
            lambda: {answer[1] for answer in routes.answers(alias, *sessions)} == {stable, canary},
        )
        eventually("all gateways agree", lambda: routes.answers(alias, *sessions) == routes.answers(alias, *sessions))
        assert {answer[1] for answer in routes.answers(alias, *sessions, x_canary="yes")} == {canary}
        explained = f"explained-{here.namespace}"  # the last request may be another test's
        routes.answers(alias, x_canary="yes", x_request_id=explained)
        shown = explain_request(here, explained)
        assert f"{alias} is the route {here.namespace}/assistant, overrides[0] → {canary}" in shown, shown

        here.apply(resource("ModelRoute", "assistant", servedNames=[alias], targets=[{"model": "gone"}]))
        routes.wait(alias, [503, None, "route_without_target"])
        missing = {"Accepted": ("True", "Valid"), "ResolvedRefs": ("False", "ModelNotFound")}
        eventually("its conditions say so", lambda: conditions(here, "assistant") == missing)
        here.run("delete", "modelroute", "assistant")
        routes.wait(alias, [404, None, "model_not_found"])
    finally:
        here.run("delete", "modelroute", "assistant", "--ignore-not-found")
        here.run("delete", "modeldeployment", "stable", "canary", "--ignore-not-found")


def copies(here: Kubectl, shadow: str, original: str) -> dict[str, int]:
    """Returns what became of the copies of a model's requests for its shadow, at all gateways."""
    code, shown = run_fairlead(here, "explain", "shadow", shadow, "-o", "json", codes=(0, 1))
    found: Counter[str] = Counter()
    for comparisons in json.loads(shown).values() if code == 0 else ():
        for one in comparisons.get(shadow, ()):
            if one["original"] == original:
                found.update({**one["outcomes"], "compared": one["compared"]})
    return dict(found)


@pytest.mark.lane("requests", position=38)
def test_a_shadow_answers_copies_and_no_client(here: Kubectl, installed: HelmRelease) -> None:
    name, stable, following = (f"{here.namespace}/{one}" for one in ("shadowed", "stable", "following"))
    here.apply(paced_engine(), model("stable"), model("following"))
    client = ClientPod(here, installed).start()
    for key in (stable, following):
        client.first_token(key)
    routes = RouteClient(client)
    try:
        here.apply(resource("ModelRoute", "shadowed", targets=[{"model": "stable"}], shadow={"model": "following"}))
        routes.wait(name, [200, stable, name])
        before = copies(here, following, stable).get("answered", 0)
        sessions = [str(number) for number in range(12)]
        assert routes.answers(name, *sessions) == [[200, stable, name]] * len(sessions)
        eventually(
            "each request has a copy that was answered and compared",
            lambda: (
                min(copies(here, following, stable).get(what, 0) for what in ("answered", "compared"))
                >= before + len(sessions)
            ),
        )
        assert "failed" not in copies(here, following, stable)
        assert copies(here, stable, following) == {}
    finally:
        here.run("delete", "modelroute", "shadowed", "--ignore-not-found")
        here.run("delete", "modeldeployment", "stable", "following", "--ignore-not-found")
