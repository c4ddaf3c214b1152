"""LoRA adapters on a cluster: they are applied with their base, requested, changed and deleted."""

import json

import pytest

from e2e.kube.cluster_access.command_line import run_fairlead
from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from e2e.kube.workloads.client_pods import ClientPod, GatewayRequest
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import API, model, paced_engine

_LOADED = """
import json, urllib.request
models = json.loads(urllib.request.urlopen("http://127.0.0.1:8000/v1/models", timeout=30).read())["data"]
print(json.dumps({model["id"]: model["root"] for model in models if model.get("parent")}))
"""


def adapter(name: str, **spec: object) -> Manifest:
    return {"apiVersion": API, "kind": "ModelAdapter", "metadata": {"name": name}, "spec": spec}


class AdapterClient:
    """A pod that asks the gateways of the installation."""

    def __init__(self, client: ClientPod) -> None:
        self._client = client

    def chat(self, name: str, times: int = 1, **headers: str) -> list[tuple[int, str]]:
        """Returns status, and model or code of each completion."""
        body = {"model": name, "max_tokens": 2, "messages": [{"role": "user", "content": "Why?"}]}
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        request = GatewayRequest("/v1/chat/completions", body, fields)
        return [(one.status, one.model_or_code()) for one in self._client.send_each([request] * times)]

    def wait(self, name: str, answer: tuple[int, str]) -> None:
        """Waits until ten requests in a row get this answer: there may be several gateways."""
        eventually(f"{name} is answered with {answer}", lambda: self.chat(name, 10) == [answer] * 10)

    def parents(self) -> dict[str, str | None]:
        """Returns the base of each model that a gateway lists."""
        (listed,) = self._client.send_each([GatewayRequest("/v1/models")])
        return {one["id"]: one.get("parent") for one in listed.body["data"]}


def ready(here: Kubectl, name: str) -> tuple[str, str]:
    """Returns status and reason of an adapter's condition Ready."""
    conditions = (here.get("modeladapter", name).get("status") or {}).get("conditions") or []
    return next(((one["status"], one["reason"]) for one in conditions if one["type"] == "Ready"), ("", ""))


def loaded(here: Kubectl, model: str) -> dict[str, str]:
    """Returns the sources of the adapters of a model's engine by name; none while there are
    several engines.
    """
    pods = here.get("pods", "-l", f"fairlead.io/model={model}")["items"]
    if len(pods) != 1:
        return {}
    words = ("exec", pods[0]["metadata"]["name"], "--", "python3", "-c", _LOADED)
    found: dict[str, str] = json.loads(here.run(*words))
    return found


@pytest.mark.lane("models", position=37)
def test_adapters_are_applied_requested_changed_and_deleted(here: Kubectl, installed: HelmRelease) -> None:
    alias, law = f"acme-{here.namespace}/sql", f"{here.namespace}/law"  # names belong to the cluster
    here.apply(paced_engine(), model("tiny"))
    client = ClientPod(here, installed).start()
    client.first_token(f"{here.namespace}/tiny")
    adapters = AdapterClient(client)
    try:
        sql = {"base": "tiny", "servedNames": [alias]}
        law_adapter = adapter("law", base="tiny", source="hf://acme/law", replicas=1)
        here.apply(adapter("sql", source="pvc:loras/sql-1", **sql), law_adapter)
        eventually("it has no slots", lambda: ready(here, "sql") == ("False", "BaseWithoutSlots"))
        here.apply(model("tiny", adapters={"slots": 2, "claimNames": ["loras"]}))
        eventually("sql can be loaded", lambda: ready(here, "sql") == ("True", "Loadable"))
        here.wait("condition=Ready", "modeladapter/law", "modeldeployment/tiny")
        client.first_token(f"{here.namespace}/tiny")

        eventually("law is loaded without a request", lambda: loaded(here, "tiny") == {"law": "acme/law"})
        adapters.wait(alias, (200, alias))
        adapters.wait(law, (200, law))
        path = "/var/lib/fairlead/adapters/loras"
        eventually("one engine is left", lambda: loaded(here, "tiny") == {"sql": f"{path}/sql-1", "law": "acme/law"})
        assert set(adapters.parents()) >= {alias}
        explained = f"explained-{here.namespace}"  # the last request may be another test's
        adapters.chat(alias, x_request_id=explained)
        assert "adapter sql loaded at 1 of 1" in run_fairlead(here, "explain", "request", explained)[1]
        shown = here.run("get", "madp", "sql").splitlines()[1].split()
        assert shown[2:5] == ["tiny", "True", "Loadable"], shown

        pods = {one["metadata"]["uid"] for one in here.get("pods")["items"]}
        here.apply(adapter("sql", source="pvc:loras/sql-2", **sql))

        def is_swapped() -> bool:
            return adapters.chat(alias) == [(200, alias)] and loaded(here, "tiny").get("sql") == f"{path}/sql-2"

        eventually("the new source is loaded", is_swapped)
        assert here.get("modeladapter", "sql")["status"]["engineSource"] == f"{path}/sql-2"

        here.apply(adapter("sql", source="pvc:other/sql", **sql))
        adapters.wait(alias, (404, "model_not_found"))
        eventually("its claim is missing", lambda: ready(here, "sql") == ("False", "ClaimNotMounted"))
        here.run("delete", "modeladapter", "law")
        adapters.wait(law, (404, "model_not_found"))
        assert pods == {one["metadata"]["uid"] for one in here.get("pods")["items"]}
    finally:
        here.run("delete", "modeladapter", "sql", "law", "--ignore-not-found")
        here.run("delete", "modeldeployment", "tiny", "--ignore-not-found")
