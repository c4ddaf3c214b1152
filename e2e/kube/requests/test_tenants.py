"""Tenants on a cluster: a team gets access, uses it, changes its key, and loses it."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually, run_fairlead
from e2e.kube.workloads.client_pods import ClientPod, record_result
from e2e.kube.workloads.helm_release import (
    AUDIENCE,
    GATEWAY,
    MANAGEMENT_TOKEN,
    TEAM_LABEL,
    HelmRelease,
    service_account_issuer,
)
from e2e.kube.workloads.manifests import model, paced_engine, resource
from fairlead_testing.reports import ReportLine

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


class Gateways:
    """All gateways of the installation, asked one by one from a pod of the cluster."""

    def __init__(self, client: ClientPod, release: HelmRelease) -> None:
        self._here = client.here
        self._release = release

    def wait_for(self, status: int, key: str) -> float:
        """Returns when each gateway has answered a key with a status, in Unix time."""
        pods = self._release.pods("gateway").values()
        addresses = [pod["status"]["podIP"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
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


@pytest.mark.lane("installation", position=35)
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
        here.apply(
            resource("ModelTenant", name, models=[f"{here.namespace}/one"], limits=[{"per": "Day", "requests": 4}])
        )
        began = time.time()
        key = fairlead("keys", "create", name, "prod", "--expires", "1h")
        created = gateways.wait_for(200, key) - began

        other = gateways.use(key, f"{here.namespace}/other", 1)
        assert other[0][0] == 404, other  # counts as a request too
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


@pytest.mark.lane("changes", position=76)
def test_a_team_reads_with_its_management_token(here: Kubectl, configured: HelmRelease) -> None:
    here.run("label", "namespace", here.namespace, *(f"{name}={value}" for name, value in TEAM_LABEL.items()))
    client = ClientPod(here, configured).start()
    url = f"http://{GATEWAY}-manage.{configured.here.namespace}.svc:8081"
    for token, path, status in (
        (MANAGEMENT_TOKEN, "/api/audit", 200),
        (MANAGEMENT_TOKEN, "/api/fleet", 403),
        ("another token", "/api/audit", 401),
    ):
        words = ("exec", "client", "--", "python3", "-c", _STATUS, url + path, token)
        assert (client.here.run(*words).strip(), path) == (str(status), path)
    log = configured.here.run("logs", "-l", "app.kubernetes.io/component=gateway", "--tail=-1")
    records = [json.loads(line) for line in log.splitlines() if line.startswith('{"log":"fairlead.audit"')]
    denied = [(record["actor"], record["object"]) for record in records if record["action"] == "AccessDenied"]
    assert ("acme-team", "GET /api/fleet") in denied, denied


@pytest.mark.lane("changes", position=75)
def test_a_service_account_calls_with_its_token(here: Kubectl, configured: HelmRelease) -> None:
    issuer = service_account_issuer(here)
    account = f"system:serviceaccount:{here.namespace}:default"
    gateways = Gateways(ClientPod(here, configured).start(), configured)
    try:
        here.apply(
            resource("ModelTenant", here.namespace, subjects=[{"issuer": issuer, "claim": "sub", "value": account}])
        )
        token = here.run("create", "token", "default", f"--audience={AUDIENCE}").strip()
        gateways.wait_for(200, token)
        gateways.wait_for(401, here.run("create", "token", "default", "--audience=other").strip())
        here.run("delete", "modeltenant", here.namespace)
        gateways.wait_for(401, token)
    finally:
        here.run("delete", "modeltenant", here.namespace, "--ignore-not-found")
