"""Tenants, routes and adapters on a cluster: a team gets access, uses it, changes its key, and
loses it. A route is created, split, overridden and deleted. LoRA adapters are applied with their
base, requested, changed and deleted.
"""

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from e2e.kube.cluster_access.command_line import run_fairlead
from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import GATEWAY, HelmRelease
from e2e.kube.workloads.manifests import API, model, paced_engine
from e2e.kube.workloads.report import record_result
from fairlead_testing.reports import ReportLine

AUDIENCE = "fairlead-e2e"
SECRETS = "/var/run/secrets/kubernetes.io/serviceaccount"
_UNTIL = """
import json, sys, time, urllib.error, urllib.request
status, key, *urls = sys.argv[1:]
answers, end = {}, time.monotonic() + 100
while time.monotonic() < end and set(answers.values()) != {int(status)}:
    for url in urls:
        request = urllib.request.Request(url + "/v1/models", headers={"authorization": f"Bearer {key}"})
        try:
            answers[url] = urllib.request.urlopen(request, timeout=10).status
        except urllib.error.HTTPError as error:
            answers[url] = error.code
        except OSError:
            answers[url] = 0
print(json.dumps([time.time(), answers]))
"""
_USE = """
import json, sys, urllib.error, urllib.request
url, key, body, times = sys.argv[1:]
found = []
for _ in range(int(times)):
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body.encode(), fields), timeout=120) as answer:
            found.append([answer.status, None, len(answer.read())])
    except urllib.error.HTTPError as error:
        found.append([error.code, error.headers["retry-after"], json.loads(error.read())["error"]["code"]])
print(json.dumps(found))
"""
_STATUS = """
import sys, urllib.error, urllib.request
url, token = sys.argv[1:]
try:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"})
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
_ROUTED = """
import json, sys, urllib.error, urllib.request
url, key, requests = sys.argv[1:]
found = []
for body, headers in json.loads(requests):
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), fields)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            found.append([answer.status, answer.headers["x-fairlead-model"], json.loads(answer.read())["model"]])
    except urllib.error.HTTPError as error:
        found.append([error.code, None, json.loads(error.read())["error"]["code"]])
print(json.dumps(found))
"""
_SENT = """
import json, sys, urllib.error, urllib.request
url, key, requests = sys.argv[1:]
found = []
for path, body, headers in json.loads(requests):
    fields = {"authorization": f"Bearer {key}", "content-type": "application/json", **headers}
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), fields)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            found.append([answer.status, json.loads(answer.read())])
    except urllib.error.HTTPError as error:
        found.append([error.code, json.loads(error.read())])
print(json.dumps(found))
"""
_LOADED = """
import json, urllib.request
models = json.loads(urllib.request.urlopen("http://127.0.0.1:8000/v1/models", timeout=30).read())["data"]
print(json.dumps({model["id"]: model["root"] for model in models if model.get("parent")}))
"""


def tenant(name: str, **spec: object) -> Manifest:
    return {"apiVersion": API, "kind": "ModelTenant", "metadata": {"name": name}, "spec": spec}


class Gateways:
    """All gateways of the installation, asked one by one from a pod of the cluster."""

    def __init__(self, client: ClientPod, release: HelmRelease) -> None:
        self._here = client.here
        self._release = release

    def wait_for(self, status: int, key: str) -> float:
        """Returns when each gateway has answered a key with a status, in Unix time."""
        addresses = [pod["status"]["podIP"] for pod in self._release.pods("gateway").values()]
        at, answers = json.loads(self._python(_UNTIL, str(status), key, *(f"http://{ip}:8080" for ip in addresses)))
        assert set(answers.values()) == {status}, answers
        return float(at)

    def use(self, key: str, name: str, times: int) -> list[list[object]]:
        """Returns status, Retry-After and code or length of each completion."""
        body = json.dumps({"model": name, "max_tokens": 4, "messages": [{"role": "user", "content": "Why?"}]})
        url = f"http://{GATEWAY}.{self._release.here.namespace}.svc/v1/chat/completions"
        found: list[list[object]] = json.loads(self._python(_USE, url, key, body, str(times)))
        return found

    def _python(self, code: str, *words: str) -> str:
        return self._here.run("exec", "client", "--", "python3", "-c", code, *words).splitlines()[-1]


@pytest.mark.lane("models", position=35)
def test_a_tenant_is_created_used_limited_rotated_and_revoked(here: Kubectl, installed: HelmRelease) -> None:
    name = here.namespace  # tenants belong to the cluster, where other tests may run

    def fairlead(*words: str) -> str:
        return run_fairlead(here, *words)[1].strip()

    priced = paced_engine()
    priced["metadata"]["name"] = name
    priced["spec"]["costPerHour"] = "0.70"
    here.apply(paced_engine(), priced)
    pools = [{"acceleratorClassName": name, "minReplicas": 1}]
    here.apply(model("one", pools=pools, price={"input": "1000", "output": "2000"}), model("other"))
    client = ClientPod(here, installed).start()
    client.first_token(f"{here.namespace}/one")
    gateways = Gateways(client, installed)
    try:
        here.apply(tenant(name, models=[f"{here.namespace}/one"], limits=[{"per": "Day", "requests": 3}]))
        began = time.time()
        key = fairlead("keys", "create", name, "prod", "--expires", "1h")
        created = gateways.wait_for(200, key) - began

        other = gateways.use(key, f"{here.namespace}/other", 1)
        assert other[0][0] == 404, other
        used = gateways.use(key, f"{here.namespace}/one", 6)
        assert [answer[0] for answer in used] == [200] * 3 + [429] * 3, used
        assert all(int(str(answer[1])) > 0 for answer in used[3:]), used

        def is_counted() -> bool:
            (listed,) = json.loads(fairlead("keys", "list", name, "-o", "json"))["keys"]
            return listed["lastUsedAt"] is not None

        eventually("the use of the key is known", is_counted)
        new = fairlead("keys", "rotate", name, "prod", "--overlap", "30m")
        gateways.wait_for(200, new)
        gateways.wait_for(200, key)

        _check_reports(fairlead, name)
        began = time.time()
        fairlead("keys", "revoke", name, "prod")
        revoked = gateways.wait_for(401, new) - began
        gateways.wait_for(401, key)
        _check_audit(fairlead, name)
        line = ReportLine("the last gateway refuses a revoked key within 2 s", f"{revoked:.2f} s", revoked <= 2.0)
        record_result("tenants", [line], created_seconds=round(created, 3), revoked_seconds=round(revoked, 3))
    finally:
        here.run("delete", "modeltenant", name, "--ignore-not-found")
        here.run("delete", "modeldeployment", "one", "--ignore-not-found")
        here.run("delete", "acceleratorclass", name, "--ignore-not-found")


def _check_reports(fairlead: Callable[..., str], name: str) -> None:
    """Checks that usage and cost of a tenant are those of its three answered requests."""

    def used() -> dict[str, Any]:
        rows = json.loads(fairlead("usage", "--last", "2d", "--by", "tenant,key", "-o", "json"))["usage"]
        return next((row for row in rows if row["tenant"] == name), {})

    eventually("the ledger has the requests", lambda: used().get("requests", 0) - used().get("failed", 0) == 3)
    row = used()
    assert (row["key"], row["outputTokens"]) == ("prod", 12), row
    cost = (row["inputTokens"] * 1000 + row["outputTokens"] * 2000) / 1e6
    assert float(row["costUsd"]) == pytest.approx(cost), row
    found = json.loads(fairlead("cost", "--last", "2d", "-o", "json"))
    (charged,) = (row for row in found["cost"] if (row.get("tenant"), row["state"]) == (name, "Used"))
    assert float(charged["costUsd"]) > 0.0, charged
    assert sum(float(row["costUsd"]) for row in found["cost"]) == pytest.approx(found["billNanoUsd"] / 1e9)


def _check_audit(fairlead: Callable[..., str], name: str) -> None:
    """Checks that the audit records have what was done to a tenant, and who did it."""
    records = json.loads(fairlead("audit", "--since", "1h", "--tenant", name, "-o", "json"))["records"]
    assert {"TenantAdded", "KeyCreated", "KeyChanged", "KeyRevoked"} <= {record["action"] for record in records}
    revoked = [record for record in records if record["action"] == "KeyRevoked"]
    assert all(record["actor"].endswith("(fairlead-cli)") for record in revoked), revoked


@pytest.mark.lane("installation", position=76)
def test_a_team_reads_with_its_management_token(here: Kubectl, empty: HelmRelease) -> None:
    empty.install()
    try:
        pepper = base64.b64decode(empty.here.get("secret", "fairlead-keys")["data"]["pepper"])
        digest = hmac.digest(pepper, b"token of the team", "sha256").hex()
        text = f"tokens: [{{name: acme-team, digest: '{digest}', tenants: [acme], may: [Audit]}}]\n"
        metadata = {"name": "manage-tokens"}
        empty.here.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"tokens.yaml": text}}
        )
        before = set(empty.pods("gateway"))
        empty.upgrade(audit={"manageTokens": "manage-tokens"})
        empty.wait_until_replaced("gateway", before)
        client = ClientPod(here, empty).start()
        url = f"http://{GATEWAY}-manage.{empty.here.namespace}.svc:8081"
        for token, path, status in (
            ("token of the team", "/api/audit", 200),
            ("token of the team", "/api/fleet", 403),
            ("another token", "/api/audit", 401),
        ):
            words = ("exec", "client", "--", "python3", "-c", _STATUS, url + path, token)
            assert (client.here.run(*words).strip(), path) == (str(status), path)
        log = empty.here.run("logs", "-l", "app.kubernetes.io/component=gateway", "--tail=-1")
        records = [json.loads(line) for line in log.splitlines() if line.startswith('{"log":"fairlead.audit"')]
        denied = [(record["actor"], record["object"]) for record in records if record["action"] == "AccessDenied"]
        assert ("acme-team", "GET /api/fleet") in denied, denied
    finally:
        empty.remove()


@pytest.mark.lane("installation", position=75)
def test_a_service_account_calls_with_its_token(here: Kubectl, empty: HelmRelease) -> None:
    issuer = json.loads(here.run("get", "--raw", "/.well-known/openid-configuration"))["issuer"]
    entry = {
        "issuer": issuer,
        "audiences": [AUDIENCE],
        "jwksUrl": "https://kubernetes.default.svc/openid/v1/jwks",
        "caFile": f"{SECRETS}/ca.crt",
        "tokenFile": f"{SECRETS}/token",
    }
    empty.install(auth={"tokenIssuers": [entry]})
    account = f"system:serviceaccount:{here.namespace}:default"
    gateways = Gateways(ClientPod(here, empty).start(), empty)
    try:
        here.apply(tenant(here.namespace, subjects=[{"issuer": issuer, "claim": "sub", "value": account}]))
        token = here.run("create", "token", "default", f"--audience={AUDIENCE}").strip()
        gateways.wait_for(200, token)
        gateways.wait_for(401, here.run("create", "token", "default", "--audience=other").strip())
        here.run("delete", "modeltenant", here.namespace)
        gateways.wait_for(401, token)
    finally:
        here.run("delete", "modeltenant", here.namespace, "--ignore-not-found")
        empty.remove()


def route(name: str, **spec: object) -> Manifest:
    return {"apiVersion": API, "kind": "ModelRoute", "metadata": {"name": name}, "spec": spec}


class RouteClient:
    """A pod that asks for names of routes."""

    def __init__(self, client: ClientPod, release: HelmRelease) -> None:
        self._client = client
        self._url = f"http://{GATEWAY}.{release.here.namespace}.svc/v1/chat/completions"

    def answers(self, name: str, *sessions: str, **headers: str) -> list[list[Any]]:
        """Returns status, target, and model or code of a completion for each session."""
        requests = []
        for session in sessions or ("only",):
            body = {"model": name, "max_tokens": 2, "messages": [{"role": "user", "content": f"Why {session}?"}]}
            fields = {key.replace("_", "-"): value for key, value in headers.items()}
            requests.append([body, {"x-session-id": session, **fields}])
        words = ("exec", "client", "--", "python3", "-c", _ROUTED, self._url, self._client.key, json.dumps(requests))
        found: list[list[Any]] = json.loads(self._client.here.run(*words).splitlines()[-1])
        return found

    def wait(self, name: str, answer: list[Any]) -> None:
        """Waits until ten requests in a row get this answer: there may be several gateways."""
        eventually(f"{name} is answered with {answer}", lambda: self.answers(name, *["same"] * 10) == [answer] * 10)


def conditions(here: Kubectl, name: str) -> dict[str, tuple[str, str]]:
    status = here.get("modelroute", name).get("status") or {}
    return {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions") or []}


@pytest.mark.lane("models", position=36)
def test_a_route_is_created_split_overridden_and_deleted(here: Kubectl, installed: HelmRelease) -> None:
    alias = f"acme-{here.namespace}/assistant"  # names belong to the cluster, where other tests may run
    stable, canary = f"{here.namespace}/stable", f"{here.namespace}/canary"
    here.apply(paced_engine(), model("stable"), model("canary"))
    client = ClientPod(here, installed).start()
    for name in (stable, canary):
        client.first_token(name)
    routes = RouteClient(client, installed)
    try:
        here.apply(
            route("assistant", servedNames=[alias], targets=[{"model": "stable"}, {"model": "gone", "weight": 0}])
        )
        began = time.time()
        routes.wait(alias, [200, stable, alias])
        assert time.time() - began < 120
        expected = {"Accepted": ("True", "Valid"), "ResolvedRefs": ("True", "Resolved")}
        eventually("its conditions say so", lambda: conditions(here, "assistant") == expected)
        assert alias in json.dumps(here.get("modelroute", "assistant")["status"])
        assert f"{stable} 1" in here.run("get", "mroute", "assistant")

        override = {"headers": {"x-canary": "yes"}, "targets": [{"model": "canary"}]}
        split = [{"model": "stable"}, {"model": "canary"}]
        here.apply(route("assistant", servedNames=[alias], targets=split, overrides=[override]))
        sessions = [str(number) for number in range(12)]
        eventually(
            "both targets get sessions",
            lambda: {one[1] for one in routes.answers(alias, *sessions)} == {stable, canary},
        )
        eventually("all gateways agree", lambda: routes.answers(alias, *sessions) == routes.answers(alias, *sessions))
        assert {one[1] for one in routes.answers(alias, *sessions, x_canary="yes")} == {canary}
        explained = f"explained-{here.namespace}"  # the last request may be another test's
        routes.answers(alias, x_canary="yes", x_request_id=explained)
        shown = run_fairlead(here, "explain", "request", explained)[1]
        assert f"{alias} is the route {here.namespace}/assistant, overrides[0] → {canary}" in shown, shown

        here.apply(route("assistant", servedNames=[alias], targets=[{"model": "gone"}]))
        routes.wait(alias, [503, None, "route_without_target"])
        missing = {"Accepted": ("True", "Valid"), "ResolvedRefs": ("False", "ModelNotFound")}
        eventually("its conditions say so", lambda: conditions(here, "assistant") == missing)
        here.run("delete", "modelroute", "assistant")
        routes.wait(alias, [404, None, "model_not_found"])
    finally:
        here.run("delete", "modelroute", "assistant", "--ignore-not-found")
        here.run("delete", "modeldeployment", "stable", "canary", "--ignore-not-found")


def adapter(name: str, **spec: object) -> Manifest:
    return {"apiVersion": API, "kind": "ModelAdapter", "metadata": {"name": name}, "spec": spec}


class AdapterClient:
    """A pod that asks the gateways of the installation."""

    def __init__(self, client: ClientPod, release: HelmRelease) -> None:
        self.here = client.here
        self._key = client.key
        self._url = f"http://{GATEWAY}.{release.here.namespace}.svc"

    def send(self, path: str, body: object = None, times: int = 1, **headers: str) -> list[list[Any]]:
        """Returns status and JSON of each answer."""
        request = [path, body, {key.replace("_", "-"): value for key, value in headers.items()}]
        words = ("exec", "client", "--", "python3", "-c", _SENT, self._url, self._key, json.dumps([request] * times))
        found: list[list[Any]] = json.loads(self.here.run(*words).splitlines()[-1])
        return found

    def chat(self, name: str, times: int = 1, **headers: str) -> list[tuple[int, str]]:
        """Returns status, and model or code of each completion."""
        body = {"model": name, "max_tokens": 2, "messages": [{"role": "user", "content": "Why?"}]}
        found = self.send("/v1/chat/completions", body, times, **headers)
        return [(status, body["model"] if status == 200 else body["error"]["code"]) for status, body in found]

    def wait(self, name: str, answer: tuple[int, str]) -> None:
        """Waits until ten requests in a row get this answer: there may be several gateways."""
        eventually(f"{name} is answered with {answer}", lambda: self.chat(name, 10) == [answer] * 10)

    def parents(self) -> dict[str, str | None]:
        """Returns the base of each model that a gateway lists."""
        (listed,) = self.send("/v1/models")
        return {one["id"]: one.get("parent") for one in listed[1]["data"]}


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
    adapters = AdapterClient(client, installed)
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
        changed = time.monotonic()

        def is_swapped() -> bool:
            return adapters.chat(alias) == [(200, alias)] and loaded(here, "tiny").get("sql") == f"{path}/sql-2"

        eventually("the new source is loaded", is_swapped)
        assert time.monotonic() - changed < 60
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
