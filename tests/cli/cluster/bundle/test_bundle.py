"""The support bundle: its content and size, and no planted secret or prompt anywhere in it."""

import base64
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.kube.client import KubeApi, RawResponse
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    EVENTS,
    MODEL_DEPLOYMENTS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Manifest,
    Resource,
    uid_of,
)
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.bundle.command import (
    BundleLimits,
    BundlePart,
    PackedBundle,
    build_bundle,
    pack,
    write_archive,
)
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test
from fairlead_testing.waiting import wait_until

SECRET = "canarysecretvalue77"
PROMPT = "tell me of the yellow canary"
OURS = {
    "app.kubernetes.io/name": "fairlead",
    "app.kubernetes.io/component": "gateway",
    "app.kubernetes.io/instance": "f",
}
CHILD = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "tiny"}


def parts(*sizes: int) -> list[BundlePart]:
    return [BundlePart(f"{number}.log", bytes([48 + number]) * size) for number, size in enumerate(sizes)]


def test_long_parts_are_cut_and_omitted_parts_listed() -> None:
    packed = pack(
        [*parts(10, 3, 3), BundlePart("end", b"0123456789", keep_end=True), BundlePart("gone", MissingValue("no"))],
        {"a": 1},
        BundleLimits(4, 11),
    )
    assert [(path, content) for path, content in packed.files] == [
        ("0.log", b"0000"),
        ("1.log", b"111"),
        ("2.log", b"222"),
    ]
    assert packed.manifest["a"] == 1
    assert packed.manifest["files"][0] == {"path": "0.log", "bytes": 4, "bytes_cut": 6}
    assert [part["path"] for part in packed.manifest["missing"]] == ["end", "gone"]
    kept = pack([BundlePart("end", b"0123456789", keep_end=True)], {}, BundleLimits(4, 11))
    assert kept.files == (("end", b"6789"),)


def test_archive_is_private_and_written_atomically(tmp_path: Path) -> None:
    target = tmp_path / "b.tar.gz"
    size = write_archive(PackedBundle((("a/b.txt", b"x"),), {"files": []}), target, "top", 1_800_000_000.0)
    assert (target.stat().st_mode & 0o777, target.stat().st_size) == (0o600, size)
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["top/manifest.json", "top/a/b.txt"]
    with pytest.raises(FileNotFoundError):
        write_archive(PackedBundle((), {}), tmp_path / "none" / "b", "top", 0.0)
    assert list(tmp_path.iterdir()) == [target]


# --- on a real API server -----------------------------------------------------------------------------------------------


class Api(KubeApi):
    """The real one, but for logs, which hold canaries too."""

    async def get_raw(self, path: str, *arguments: Any, **more: Any) -> RawResponse:
        content = (
            f'ok\nkey {SECRET}\n{{"messages": [{{"content": "{PROMPT}"}}]}}\nprompt: "{PROMPT}"\nredis://:{SECRET}@h\n'
        )
        if path.endswith("/log"):
            return RawResponse(200, content.encode())
        return await super().get_raw(path, *arguments, **more)


@pytest.fixture(autouse=True)
def pods_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers for pods, which run nowhere, with canaries."""

    async def get_pages(api: KubeApi, pod: Manifest, port: int, paths: Sequence[str]) -> list[RawResponse]:
        return [RawResponse(200, f"note {SECRET}\n".encode()) for _ in paths]

    monkeypatch.setattr(pod_http, "get_pages", get_pages)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server_for_test(tmp_path_factory.mktemp("bundled") / "run") as own_server:
        yield own_server


def of(
    resource: Resource, namespace: str | None, name: str, labels: Mapping[str, str] | None = None, **more: Any
) -> Manifest:
    metadata: dict[str, Any] = {"name": name, "labels": dict(labels or {}) | {"who": "canary"}}
    metadata["annotations"] = {"note": f"{SECRET} {PROMPT}"}
    metadata |= {} if namespace is None else {"namespace": namespace}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **more}


ENV = [
    {"name": "HF_TOKEN", "value": SECRET},
    {"name": "SYSTEM_PROMPT", "value": PROMPT},
    {"name": "FAIRLEAD_LOG_LEVEL", "value": "info"},
    {"name": "FAIRLEAD_KEY_PEPPER", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "pepper"}}},
]
CONTAINER = {
    "name": "gateway",
    "image": "serving.fairlead.io/gateway:1",
    "env": ENV,
    "args": ["--keys=/etc/keys", f"--api-key={SECRET}", "--greeting", PROMPT],
    "command": ["python3", "-c", f"say('{PROMPT} {SECRET}')"],
    "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", f"echo {SECRET}"]}}},
    "livenessProbe": {"httpGet": {"path": "/", "port": 80, "httpHeaders": [{"name": "x", "value": SECRET}]}},
}


async def planted(api: Api) -> None:
    """A secret and a prompt in every place that a bundle looks at."""
    for kind in served_kinds():
        await api.apply(crd_manifest(kind), "test")
    await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))
    await api.apply(of(NAMESPACES, None, "fairlead"), "test")
    await api.apply(of(SERVICE_ACCOUNTS, "fairlead", "default"), "test")
    data = {"pepper": base64.b64encode(SECRET.encode()).decode()}
    await api.apply(of(SECRETS, "fairlead", "keys", OURS, data=data), "test")
    template = {"metadata": {"labels": OURS, "annotations": {"note": PROMPT}}, "spec": {"containers": [CONTAINER]}}
    spec = {"selector": {"matchLabels": OURS}, "template": template}
    await api.apply(of(DEPLOYMENTS, "fairlead", "gateway", OURS, spec=spec), "test")
    await api.apply(of(PODS, "fairlead", "gateway-0", OURS, spec={"containers": [CONTAINER]}), "test")
    ended = {"exitCode": 1, "reason": "Error", "message": f"{PROMPT} {SECRET}"}
    conditions = [{"type": "Ready", "status": "False", "message": f"token={SECRET}"}]
    container = {
        "name": "gateway",
        "ready": False,
        "restartCount": 3,
        "image": "x",
        "imageID": "",
        "lastState": {"terminated": ended},
    }
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": [container]}
    await api.patch_merge(PODS, "fairlead", "gateway-0", {"status": status}, "test", subresource="status")
    engine = {"type": "VLLM", "args": [f"--api-key={SECRET}", f"--chat-template={PROMPT}"], "env": ENV[:2]}
    pools = [
        {"acceleratorClassName": "cpu", "template": {"spec": {"containers": [{"name": "engine", "env": ENV[:2]}]}}}
    ]
    wanted = {"model": {"uri": "hf://a/b"}, "engine": engine, "pools": pools}
    model = await api.apply(of(MODEL_DEPLOYMENTS, "fairlead", "tiny", spec=wanted), "test")
    crash = {
        "type": "Stalled",
        "status": "True",
        "reason": "EngineCrashing",
        "message": f"pod a: engine ended with exit code 1, 3 times: {PROMPT}",
        "lastTransitionTime": "2026-11-20T18:00:00Z",
    }
    await api.apply_status({**model, "status": {"conditions": [crash], "observedGeneration": 1}}, "test")
    await api.apply(of(CONTROLLER_REVISIONS, "fairlead", "tiny-1", CHILD, revision=1, data={"spec": wanted}), "test")
    kind = {"apiVersion": "v1", "kind": "ModelDeployment"}
    regarding = kind | {"name": "tiny", "namespace": "fairlead", "uid": uid_of(model)}
    reporter = {"reportingController": "fairlead.io/operator", "reportingInstance": "x"}
    event = {
        "action": "Serve",
        "reason": "EngineCrashing",
        "type": "Warning",
        "eventTime": "2026-11-20T18:00:00.000000Z",
    }
    note = f"Engine ended with exit code 1, 3 times: {PROMPT}; Bearer {SECRET}"
    await api.create(of(EVENTS, "fairlead", "e1", **reporter, **event, note=note, regarding=regarding), "test")


@pytest.mark.api_server
async def test_planted_secret_and_prompt_appear_nowhere_in_the_bundle(server: ApiServer, tmp_path: Path) -> None:
    async with Api(server.config(), SystemClock(), lambda: 0.5) as api:
        await planted(api)
        packed = await build_bundle(api, await api.version(), SystemClock(), None)
    files = dict(packed.files)
    whole = json.dumps(packed.manifest).encode() + b"\n".join(
        path.encode() + b"\n" + content for path, content in files.items()
    )
    encoded = base64.b64encode(SECRET.encode())
    for canary in (SECRET.encode(), PROMPT.encode(), encoded, b"yellow canary", b"canarysecret"):
        assert canary not in whole, next(path for path, content in files.items() if canary in content)
    for path in ("check.txt", "check.json", "versions.json", "crds.json", "models/modeldeployments.json"):
        assert path in files
    assert b"key [redacted]" in files["control-plane/fairlead/gateway-0/gateway.log"]
    assert b"ok" in files["control-plane/fairlead/gateway-0/gateway-before.log"]
    assert b"note [redacted]" in files["control-plane/fairlead/gateway-0/metrics.txt"]
    (event,) = json.loads(files["objects/events.json"])
    assert event["reason"] == "EngineCrashing"
    (model,) = json.loads(files["models/modeldeployments.json"])
    assert model["spec"]["engine"]["args"][0] == "--api-key=[redacted]"
    assert b"--keys=/etc/keys" in files["control-plane/pods.json"]
    assert json.loads(files["crds.json"])[0]["same_as_ours"] is True
    assert len(json.loads(files["models/controllerrevisions.json"])) == 1
    missing = {part["path"] for part in packed.manifest["missing"]}
    assert "models/leaderworkersets.json" in missing
