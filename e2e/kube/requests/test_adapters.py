"""LoRA adapters on a cluster: they are applied with their base, requested, changed and deleted."""

import hashlib
import json
from pathlib import Path

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually, explain_request
from e2e.kube.workloads.client_pods import ClientPod, GatewayRequest
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import PORT, deployment, model, paced_engine, pod_spec, resource, service
from fairlead_testing.http import s3_server

_LOADED = """
import json, urllib.request
models = json.loads(urllib.request.urlopen("http://127.0.0.1:8000/v1/models", timeout=30).read())["data"]
print(json.dumps({model["id"]: model["root"] for model in models if model.get("parent")}))
"""


STORE = "lora-store"
FILES = {"adapter_config.json": '{"r": 8}', "adapter_model.safetensors": "weights of version {}"}
_READ = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
print(json.dumps({path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}))
"""


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
        eventually(f"{name} is answered with {answer}", lambda: self.chat(name, 10) == [answer] * 10)

    def parents(self) -> dict[str, str | None]:
        (listed,) = self._client.send_each([GatewayRequest("/v1/models")])
        return {one["id"]: one.get("parent") for one in listed.body["data"]}


def ready(here: Kubectl, name: str) -> tuple[str, str]:
    """Returns status and reason of an adapter's condition Ready."""
    conditions = (here.get("modeladapter", name).get("status") or {}).get("conditions") or []
    return next(
        ((condition["status"], condition["reason"]) for condition in conditions if condition["type"] == "Ready"),
        ("", ""),
    )


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


@pytest.mark.lane("requests", position=37)
def test_adapters_are_applied_requested_changed_and_deleted(here: Kubectl, remembering: HelmRelease) -> None:
    alias, law = f"acme-{here.namespace}/sql", f"{here.namespace}/law"  # names belong to the cluster
    here.apply(paced_engine(), model("tiny"))
    client = ClientPod(here, remembering).start()
    client.first_token(f"{here.namespace}/tiny")
    adapters = AdapterClient(client)
    try:
        sql = {"base": "tiny", "servedNames": [alias]}
        law_adapter = resource("ModelAdapter", "law", base="tiny", source="hf://acme/law", replicas=1)
        here.apply(resource("ModelAdapter", "sql", source="pvc:loras/sql-1", **sql), law_adapter)
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
        assert "adapter sql loaded at 1 of 1" in explain_request(here, explained)
        shown = here.run("get", "madp", "sql").splitlines()[1].split()
        assert shown[2:5] == ["tiny", "True", "Loadable"], shown

        pods = {manifest["metadata"]["uid"] for manifest in here.get("pods")["items"]}
        here.apply(resource("ModelAdapter", "sql", source="pvc:loras/sql-2", **sql))

        def is_swapped() -> bool:
            return adapters.chat(alias) == [(200, alias)] and loaded(here, "tiny").get("sql") == f"{path}/sql-2"

        eventually("the new source is loaded", is_swapped)
        assert here.get("modeladapter", "sql")["status"]["engineSource"] == f"{path}/sql-2"

        here.apply(resource("ModelAdapter", "sql", source="pvc:other/sql", **sql))
        adapters.wait(alias, (404, "model_not_found"))
        eventually("its claim is missing", lambda: ready(here, "sql") == ("False", "ClaimNotMounted"))
        here.run("delete", "modeladapter", "law")
        adapters.wait(law, (404, "model_not_found"))
        assert pods == {manifest["metadata"]["uid"] for manifest in here.get("pods")["items"]}
    finally:
        here.run("delete", "modeladapter", "sql", "law", "--ignore-not-found")
        here.run("delete", "modeldeployment", "tiny", "--ignore-not-found")


def files_of(version: int) -> dict[str, str]:
    return {name: text.replace("{}", str(version)) for name, text in FILES.items()}


def digest_of(files: dict[str, str]) -> str:
    lines = (f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in sorted(files.items()))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def object_store() -> list[Manifest]:
    """Returns an S3 server with two versions of an adapter, and the credentials for it."""
    objects = {f"loras/sql-{n}/{name}": text for n in (1, 2) for name, text in files_of(n).items()}
    code = Path(s3_server.__file__).read_text()
    spec = pod_spec("sim", "0.0.0.0", str(PORT), json.dumps(objects), command=("python3", "-c", code))
    secret = {
        "AWS_ENDPOINT_URL": f"http://{STORE}:{PORT}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": s3_server.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": s3_server.SECRET_KEY,
    }
    credentials = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": STORE}, "stringData": secret}
    return [deployment(STORE, spec), service(STORE), credentials]


@pytest.mark.lane("requests", position=38)
def test_adapter_of_an_object_store_is_downloaded_checked_and_swapped(here: Kubectl, remembering: HelmRelease) -> None:
    name = f"{here.namespace}/sql"
    download = {"size": "64Mi", "credentials": {"secretRef": {"name": STORE}}}
    here.apply(*object_store(), paced_engine(), model("tiny", adapters={"slots": 2}))
    client = ClientPod(here, remembering).start()
    client.first_token(f"{here.namespace}/tiny")
    adapters = AdapterClient(client)

    def sql(version: int, content: int) -> Manifest:
        source = f"s3://loras/sql-{version}"
        return resource("ModelAdapter", "sql", base="tiny", source=source, digest=digest_of(files_of(content)))

    def engine_files() -> dict[str, str]:
        path = here.get("modeladapter", "sql")["status"]["engineSource"]
        pod = here.get("pods", "-l", "fairlead.io/model=tiny")["items"][0]["metadata"]["name"]
        words = ("exec", pod, "-c", "engine", "--", "python3", "-c", _READ, path)
        found: dict[str, str] = json.loads(here.run(*words))
        return found

    try:
        here.apply(sql(1, 1))
        eventually("there is no downloader", lambda: ready(here, "sql") == ("False", "BaseUnsuitable"))
        here.apply(model("tiny", adapters={"slots": 2, "download": download}))
        here.wait("condition=Ready", "modeladapter/sql", "modeldeployment/tiny")
        eventually("one engine is left", lambda: len(here.get("pods", "-l", "fairlead.io/model=tiny")["items"]) == 1)
        ids: list[str] = []

        def is_served() -> bool:
            ids.append(f"downloaded-{len(ids)}-{here.namespace}")  # the engine before may still refuse some
            return adapters.chat(name, x_request_id=ids[-1]) == [(200, name)]

        eventually("it is served", is_served)
        said = explain_request(here, ids[-1])
        assert "adapter sql cold, downloaded in " in said, said
        assert engine_files() == files_of(1)

        path = here.get("modeladapter", "sql")["status"]["engineSource"]
        here.apply(sql(2, 2))
        eventually("it is swapped", lambda: adapters.chat(name) == [(200, name)] and engine_files() == files_of(2))
        assert loaded(here, "tiny")["sql"] == here.get("modeladapter", "sql")["status"]["engineSource"] != path

        here.apply(sql(2, 1))
        adapters.wait(name, (503, "adapter_not_loaded"))
        pod = here.get("pods", "-l", "fairlead.io/model=tiny")["items"][0]["metadata"]["name"]
        log = here.run("logs", pod, "-c", "adapter-downloader")
        assert f"its digest is {digest_of(files_of(2))}, not {digest_of(files_of(1))}" in log
        assert s3_server.SECRET_KEY not in log
        assert client.first_token(f"{here.namespace}/tiny")
    finally:
        here.run("delete", "modeladapter", "sql", "--ignore-not-found")
        here.run("delete", "modeldeployment", "tiny", "--ignore-not-found")
