"""The cluster commands on a real API server: a whole installation, the seeded faults that its
objects show, and the output of the commands.
"""

import asyncio
import base64
import copy
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.kube.client import KubeApi, RawResponse
from fairlead.kube.resources import (
    CLUSTER_ROLES,
    EVENTS,
    LEASES,
    MODEL_DEPLOYMENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Manifest,
    Resource,
    format_micro_time,
    name_of,
    uid_of,
)
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.checks.check import CheckOutcome, CheckResult
from fairlead_cli.cluster.checks.runner import SEEDED_FAULTS, run_checks
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.facts_collector import collect_facts
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.status.command import collect_model_facts, find_model
from fairlead_operator.kube.leader_election import LEASE_NAME
from fairlead_operator.status.diagnosis import diagnose
from fairlead_operator.status.model_status import PoolState, StatusInputs, model_status
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test, binaries_folder
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.api_server
ROOT = Path(__file__).parents[3]
PLACE, MODELS = "fairlead", "chat"
TINY = {"model": {"uri": "hf://a/b"}, "pools": [{"name": "main", "acceleratorClassName": "nvidia-l4"}]}
Build = Mapping[str, Callable[..., Any]]
WELL = {
    "operator": ("leading\n", 'fairlead_operator_leading 1.0\nfairlead_operator_watch_age_seconds{kind="Pod"} 3.0\n'),
    "gateway": ('{"ready":true,"notes":[]}', "fairlead_gateway_redis_connected 1\n"),
    "indexer": ("ready\n", 'fairlead_indexer_redis_connected 1.0\nfairlead_indexer_leads{model="chat/tiny"} 1.0\n'),
    "autoscaler": ("ready\n", "fairlead_autoscaler_leads 1.0\nfairlead_autoscaler_gateways 1.0\n"),
}


class Api(KubeApi):
    def __init__(self, server: ApiServer) -> None:
        super().__init__(server.config(), SystemClock(), lambda: 0.5)


@pytest.fixture(autouse=True)
def pods_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers for pods, which run nowhere."""

    async def get_pages(api: KubeApi, pod: Manifest, port: int, paths: Sequence[str]) -> list[RawResponse]:
        component = next(name for name in WELL if f"-{name}-" in name_of(pod))
        return [RawResponse(200, page.encode()) for page in WELL[component]]

    monkeypatch.setattr(pod_http, "get_pages", get_pages)


def of(resource: Resource, namespace: str | None, name: str, **more: Any) -> Manifest:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **more}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of this file, because the checks would see what other tests leave on the shared
    one.
    """
    with api_server_for_test(tmp_path_factory.mktemp("checked") / "run") as own_server:
        yield own_server


async def apply_kinds_and_namespaces(api: Api) -> None:
    for kind in served_kinds():
        await api.apply(crd_manifest(kind), "test")
    await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))
    for name in (PLACE, MODELS):
        await api.apply(of(NAMESPACES, None, name), "test")


async def installed(api: Api, build: Build) -> None:
    """Installs the chart, its pods, a lease, and a ready model."""
    await apply_kinds_and_namespaces(api)
    deployments = []
    for manifest in build["chart"]():
        if manifest["kind"] == "Secret":
            manifest["data"] = {key: base64.b64encode(b"drawn").decode() for key in manifest["data"]}
        if manifest["kind"] == "Pod" or manifest["kind"] not in _KINDS:
            continue
        await api.apply(manifest, "test")
        deployments += [manifest] if manifest["kind"] == "Deployment" else []
    for manifest in deployments:
        for number in range(manifest["spec"]["replicas"]):
            await _pod(api, build["pod"](manifest, number))
    await renewed(api, 0.0)
    await modelled(api, ready=True)


_KINDS = (
    *("ServiceAccount", "Secret", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment", "Service"),
    *("PodDisruptionBudget", "NetworkPolicy"),
)


async def _pod(api: Api, pod: Manifest) -> None:
    spec = {name: value for name, value in pod.items() if name != "status"}
    spec["metadata"] = {name: value for name, value in pod["metadata"].items() if name != "uid"}
    await api.apply(spec, "test")
    await api.patch_merge(PODS, PLACE, pod["metadata"]["name"], {"status": pod["status"]}, "test", subresource="status")


async def renewed(api: Api, ago: float) -> None:
    at = format_micro_time(SystemClock.wall() - ago)
    spec = {"holderIdentity": "fairlead-operator-0_1_a", "leaseDurationSeconds": 15, "renewTime": at}
    await api.apply(of(LEASES, PLACE, LEASE_NAME, spec=spec), "test")


async def modelled(api: Api, *, ready: bool, pods: tuple[Manifest, ...] = ()) -> None:
    """The model with the status that the operator would write, from the pods that it would see."""
    model = await api.apply(of(MODEL_DEPLOYMENTS, MODELS, "tiny", spec=TINY), "test")
    pool = PoolState("main", "Serve", desired=1, ready=int(ready), updated=1, existing=1)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = model_status(
        {**model, "status": {}}, StatusInputs((pool,), diagnose(pods, ())), model["metadata"]["generation"], now
    )
    await api.apply_status({**model, "status": status}, "test")


async def checked(api: Api) -> tuple[CheckResult, ...]:
    return run_checks(await gathered(api))


async def gathered(api: Api) -> ClusterFacts:
    return await collect_facts(api, await api.version(), SystemClock(), namespace=None, before_install=False)


def failing(results: tuple[CheckResult, ...]) -> dict[str, str]:
    return {
        result.check.id: " | ".join(result.verdict.lines)
        for result in results
        if result.verdict.outcome is CheckOutcome.FAILED
    }


# --- faults that objects of the API server show -----------------------------------------


async def operator_down(api: Api) -> None:
    for number in range(2):
        conditions = [{"type": "Ready", "status": "False", "message": "containers with unready status: [operator]"}]
        patch = {"status": {"conditions": conditions}}
        await api.patch_merge(PODS, PLACE, f"fairlead-operator-{number}", patch, "test", subresource="status")
    await renewed(api, 600.0)


async def operator_right_removed(api: Api) -> None:
    role = await api.get(CLUSTER_ROLES, None, "fairlead-fairlead-operator")
    rules = [rule for rule in role["rules"] if "services" not in rule["resources"]]
    await api.patch_merge(CLUSTER_ROLES, None, "fairlead-fairlead-operator", {"rules": rules}, "test")


async def crd_outdated(api: Api) -> None:
    older = copy.deepcopy(next(crd_manifest(kind) for kind in served_kinds() if kind.name == "ModelDeployment"))
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["adapters"]
    rules = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    rules["x-kubernetes-validations"] = [
        rule for rule in rules["x-kubernetes-validations"] if "adapters" not in rule["rule"]
    ]
    await api.apply(older, "test")


async def keys_missing(api: Api) -> None:
    await api.delete(SECRETS, PLACE, "fairlead-keys")


UNPULLABLE: Manifest = {
    "metadata": {"name": "tiny-main-a"},
    "status": {
        "phase": "Pending",
        "containerStatuses": [
            {"image": "nowhere/x:1", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
        ],
    },
}


async def image_unpullable(api: Api) -> None:
    await modelled(api, ready=False, pods=(UNPULLABLE,))


SEEDS: dict[str, tuple[Callable[[Api], Awaitable[None]], str]] = {
    "operator-down": (operator_down, "containers with unready status: [operator]"),
    "operator-right-removed": (operator_right_removed, "create, delete, get, list, patch, watch"),
    "crd-outdated": (crd_outdated, "it lacks spec.adapters"),
    "keys-missing": (keys_missing, "fairlead/fairlead-keys does not exist"),
    "image-unpullable": (image_unpullable, "chat/tiny: ImagePullFailed: pod tiny-main-a: nowhere/x:1: not found"),
}


async def test_seeded_fault_fails_only_its_check_on_an_api_server(server: ApiServer, builders: Build) -> None:
    async with Api(server) as api:
        await installed(api, builders)
        results = await checked(api)
        assert [
            (result.check.id, result.verdict)
            for result in results
            if result.verdict.outcome in (CheckOutcome.FAILED, CheckOutcome.UNKNOWN)
        ] == []
        for fault in (fault for fault in SEEDED_FAULTS if fault.name in SEEDS):
            seed, words = SEEDS[fault.name]
            await seed(api)
            findings = failing(await checked(api))
            assert set(findings) == {fault.check}, fault.name
            for part in words.split(", ") if fault.name == "operator-right-removed" else (words,):
                assert part in findings[fault.check], fault.name
            await installed(api, builders)
        assert failing(await checked(api)) == {}


async def test_check_pre_before_an_installation(server: ApiServer) -> None:
    """A namespace that enforces ``restricted`` takes the pod."""
    async with Api(server) as api:
        strict = of(NAMESPACES, None, "strict")
        strict["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
        await api.apply(strict, "test")
        await api.apply(of(SERVICE_ACCOUNTS, "strict", "default"), "test")
        facts = await collect_facts(api, await api.version(), SystemClock(), namespace="strict", before_install=True)
        verdicts = {check.check.id: check.verdict for check in run_checks(facts, before_install=True)}
        assert facts.dry_run_refusal == ""
        assert {name for name, verdict in verdicts.items() if verdict.outcome is CheckOutcome.FAILED} == set()
        assert verdicts["storage-class"].outcome is verdicts["accelerators"].outcome is CheckOutcome.WARNING


# --- the commands -------------------------------------------------------------------------------------------------------


def fairlead(server: ApiServer, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"KUBECONFIG": str(server.kubeconfig), "XDG_RUNTIME_DIR": str(server.run), **environment}
    return run_program(*words, **given)


@pytest.fixture(scope="module")
def furnished(server: ApiServer) -> ApiServer:
    """An API server with a ready model, one whose image cannot be pulled, and one that no operator
    has seen.
    """

    async def furnish() -> None:
        async with Api(server) as api:
            await apply_kinds_and_namespaces(api)
            await modelled(api, ready=False, pods=(UNPULLABLE,))
            await api.apply(of(MODEL_DEPLOYMENTS, PLACE, "unseen", spec=TINY), "test")

    asyncio.run(furnish())
    return server


def test_status_of_one_model(furnished: ApiServer) -> None:
    done = fairlead(furnished, "status", "tiny", "-n", MODELS)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("× chat/tiny  0/1 ready  VLLM  hf://a/b")
    assert "Stalled True  ImagePullFailed" in done.stdout
    assert "next: check engine.image, engine.imagePullSecrets and the connection to the registry" in done.stdout
    assert "what engines say: not to be had" in done.stdout
    assert fairlead(furnished, "status", "chat/tiny").stdout.startswith("× chat/tiny  0/1 ready")
    report = json.loads(fairlead(furnished, "status", "tiny", "-o", "json").stdout)
    assert (report["key"], report["problem"], report["ready"]) == ("chat/tiny", True, "0/1")


def event_about(name: str, target: Manifest, uid: str) -> Manifest:
    regarding = {"apiVersion": target["apiVersion"], "kind": target["kind"], "uid": uid}
    regarding |= {key: target["metadata"][key] for key in ("name", "namespace")}
    fields = {"reason": "Seen", "type": "Warning", "note": name, "action": "Serve"}
    reporter = {"reportingController": "fairlead.io/test", "reportingInstance": "test"}
    at = format_micro_time(SystemClock.wall())
    return of(EVENTS, MODELS, name, regarding=regarding, eventTime=at, **fields, **reporter)


async def test_status_has_no_events_of_deleted_objects_with_the_same_name(furnished: ApiServer) -> None:
    async with Api(furnished) as api:
        model = await find_model(api, "tiny", MODELS)
        spec = {"containers": [{"name": "engine", "image": "x/y:z"}]}
        pod = of(PODS, MODELS, "tiny-main-a", spec=spec)
        pod["metadata"]["labels"] = {"fairlead.io/model": "tiny"}
        pod = await api.apply(pod, "test")
        for target in (model, pod):
            kind = target["kind"].lower()
            await api.apply(event_about(f"{kind}-now", target, uid_of(target)), "test")
            await api.apply(event_about(f"{kind}-deleted", target, "5f0c1d2e-deleted"), "test")
        events = (await collect_model_facts(api, model, SystemClock())).events
        await api.delete(PODS, MODELS, "tiny-main-a")
        assert not isinstance(events, MissingValue)
        assert [event["note"] for event in events] == ["modeldeployment-now", "pod-now"]


def test_status_of_all_models_is_a_table(furnished: ApiServer) -> None:
    done = fairlead(furnished, "status")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].split()[:3] == ["NAMESPACE", "NAME", "CLIENT-NAME"]
    assert done.stdout.splitlines()[1].split()[:2] == ["chat", "tiny"]


def test_unknown_model_error_names_the_nearest(furnished: ApiServer) -> None:
    done = fairlead(furnished, "status", "tinny")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fairlead: no model is called 'tinny' (known: chat/tiny)\n"


def test_kubectl_runs_the_plugin(furnished: ApiServer) -> None:
    folder = binaries_folder()
    assert folder is not None
    path = f"{Path(sys.executable).parent}{os.pathsep}{folder}"
    environment = {
        **os.environ,
        "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
        "KUBECONFIG": str(furnished.kubeconfig),
    }
    done = subprocess.run(
        ["kubectl", "fairlead", "status", "tiny", "-n", MODELS],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("× chat/tiny")


def test_kubectl_get_shows_the_printer_columns(furnished: ApiServer) -> None:
    folder = binaries_folder()
    assert folder is not None
    command = [str(folder / "kubectl"), "--kubeconfig", str(furnished.kubeconfig), "get", "mdep", "-n", MODELS]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert lines[0].split() == ["NAME", "CLIENT-NAME", "READY", "SLO-MET", "REASON", "AGE"]
    assert lines[1].split()[:4] == ["tiny", "tiny", "0/1", "ImagePullFailed"]


def test_missing_permissions_are_reported_by_every_command(furnished: ApiServer, tmp_path: Path) -> None:
    document = json.loads(furnished.kubeconfig.read_text())
    document["users"][0]["user"]["as"] = "jane"
    (tmp_path / "jane").write_text(json.dumps(document))
    jane = {"KUBECONFIG": str(tmp_path / "jane")}
    done = fairlead(furnished, "status", "tiny", "-n", MODELS, **jane)
    assert (done.returncode, done.stderr) == (
        2,
        "fairlead: you may not get ModelDeployments in chat (name a namespace with -n)\n",
    )
    done = fairlead(furnished, "check", "-o", "json", **jane)
    assert done.returncode == 0, done.stdout
    outcomes = {check["id"]: check["outcome"] for check in json.loads(done.stdout)["checks"]}
    assert (outcomes["rights-read"], outcomes["operator-installed"], outcomes["crd-schema"]) == (
        "warning",
        "unknown",
        "unknown",
    )
    done = fairlead(furnished, "support-bundle", "--out", str(tmp_path / "b.tar.gz"), **jane)
    assert done.returncode == 0
    assert "not in it: " in done.stderr


def test_unreachable_cluster_names_context_and_fix(furnished: ApiServer, tmp_path: Path) -> None:
    document = json.loads(furnished.kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "away").write_text(json.dumps(document))
    for command in (["status", "tiny"], ["check"], ["check", "--pre"], ["support-bundle"]):
        done = fairlead(furnished, *command, KUBECONFIG=str(tmp_path / "away"))
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("fairlead: the API server https://127.0.0.1:1 does not answer: ")
        assert f"the address is from the context fairlead-e2e of {tmp_path}/away" in done.stderr
        assert "--context" in done.stderr
    done = fairlead(furnished, "check", "--context", "prod")
    assert done.returncode == 3
    assert "has no context 'prod'" in done.stderr
    assert "kubectl config get-contexts" in done.stderr


def test_check_output_has_linkerd_form(furnished: ApiServer) -> None:
    done = fairlead(furnished, "check", "--install-namespace", "elsewhere")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "kubernetes-api"
    assert lines[1].startswith("√ the API server answers (https://127.0.0.1:")
    at = lines.index("× one operator is installed")
    assert lines[at + 1] == "    no Deployment has the labels of Fairlead's operator"
    assert lines[at + 2].startswith("    fix: helm install fairlead charts/fairlead")
    assert lines[at + 3] == "    documentation: reference/checks.html#operator-installed"
    assert lines[-1].endswith(" failed")
