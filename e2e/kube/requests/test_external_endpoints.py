"""A route whose engines go one by one: the next model answers, then an API outside the cluster. It
does not answer a tenant that refuses it.
"""

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually, explain_request, run_fairlead
from e2e.kube.workloads.client_pods import ClientPod, GatewayAnswer, GatewayRequest
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import (
    API,
    PORT,
    model,
    paced_engine,
    resource,
)


class OutwardClient:
    """A pod that sends requests to the route."""

    def __init__(self, client: ClientPod) -> None:
        self._client = client

    def send(self, key: str = "", name: str = "outward") -> GatewayAnswer:
        """Returns the answer to a request for more tokens than the route allows."""
        body = {"model": name, "max_tokens": 50, "messages": [{"role": "user", "content": "Why?"}]}
        (answer,) = self._client.send_each([GatewayRequest("/v1/chat/completions", body, {"x-team": "mine"})], key)
        return answer

    def wait(self, outcome: tuple[int, str | None, str | None], key: str = "") -> GatewayAnswer:
        """Waits until ten answers in a row are such ones: there are several gateways.

        outcome: status, model, and why others did not answer.
        """
        last: list[GatewayAnswer] = []

        def is_settled() -> bool:
            last[:] = [self.send(key) for _ in range(10)]
            return {_outcome(one) for one in last} == {outcome}

        eventually(f"the route is answered with {outcome}", is_settled)
        return last[-1]


def _outcome(answer: GatewayAnswer) -> tuple[int, str | None, str | None]:
    return answer.status, answer.headers.get("x-fairlead-model"), answer.headers.get("x-fairlead-fallback")


def objects(namespace: str) -> list[Manifest]:
    endpoint = {
        "url": f"https://api.{namespace}.svc:{PORT}/openai/v1",
        "tokenSecretKeyRef": {"name": "provider", "key": "token"},
        "caSecretKeyRef": {"name": "provider", "key": "ca.crt"},
    }
    hosted = {
        "model": {"uri": "openai://gpt-x"},
        "engine": {"type": "OpenAI"},
        "pools": [{"endpoints": [endpoint]}],
        "price": {"input": "1", "output": "2"},
    }
    down = ["Unavailable", "NoCapacity"]
    route = {
        "targets": [{"model": "first"}],
        "rewrite": {"caps": {"max_tokens": 3}},
        "onFailure": [
            {"when": down, "to": "second"},
            {"when": down, "after": "second", "to": "hosted"},
        ],
    }
    return [resource("ModelDeployment", "hosted", **hosted), resource("ModelRoute", "outward", **route)]


@pytest.mark.lane("changes", position=77)
def test_a_route_leaves_the_cluster_when_all_its_engines_are_gone(outside: Kubectl, configured: HelmRelease) -> None:
    first, second, hosted = (f"{outside.namespace}/{name}" for name in ("first", "second", "hosted"))
    try:
        outside.apply(paced_engine(), model("first"), model("second"), *objects(outside.namespace))
        client = ClientPod(outside, configured).start()
        for name in (first, second):
            client.first_token(name)
        outward = OutwardClient(client)
        answer = outward.wait((200, first, None))
        assert answer.body["usage"]["completion_tokens"] == 3, "the route caps the tokens"

        outside.apply(model("first", replicas=0))
        answer = outward.wait((200, second, f"{first} Unavailable"))
        assert answer.body["usage"]["completion_tokens"] == 3
        shown = explain_request(outside, answer.headers["x-fairlead-decision"])
        assert f"{first} Unavailable → {second}, of the least weight" in shown, shown

        outside.apply(model("second", replicas=0))
        answer = outward.wait((200, hosted, f"{first} Unavailable"))
        assert answer.body["model"] == "outward"
        sent = answer.body["choices"][0]["message"]["content"].split(",")
        assert "authorization" in sent
        assert "x-team" not in sent
        shown = explain_request(outside, answer.headers["x-fairlead-decision"])
        assert f"past {second} without a ready instance" in shown, shown

        refuses = {"externalEndpoints": "Refuse"}
        name = outside.namespace
        outside.apply({"apiVersion": API, "kind": "ModelTenant", "metadata": {"name": name}, "spec": refuses})
        key = run_fairlead(outside, "keys", "create", name, "prod")[1].strip()
        outward.wait((503, None, f"{hosted} ExternalRefused"), key)
        assert outward.send(key, hosted).body["error"]["code"] == "external_endpoint_refused"
    finally:
        outside.run("delete", "modeltenant", outside.namespace, "--ignore-not-found")
        outside.delete_models()
