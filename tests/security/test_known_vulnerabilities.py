"""Vulnerabilities of other gateways, engines and their libraries, one test each.

Each test names the advisory, and tries the same against Fairlead.
"""

import ast
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from fairlead import http_access
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.errors import FairleadError, SettingsError
from fairlead.limits import Limits
from fairlead.tenants.model import Tenant
from fairlead_gateway import __main__ as gateway_main
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import BadRequest, InvalidApiKey
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai.request import parse_request
from fairlead_gateway.routing import prefix_chain
from fairlead_gateway.supervisor.management.access.access_guard import AccessGuard
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_gateway.tenants.worker.tenant_policy import TenantPolicies
from fairlead_kvstore.events.decoder import event_slices
from fairlead_operator.render import render_model
from fairlead_testing.engines.scripted import ScriptedEngine, scripted_engine
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawResponse, post_request, send
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.render_cases import default_context
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.yaml_documents import load_documents

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("fairlead", "gateway", "kvstore", "operator", "autoscaler", "sim", "cli")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
SERIALIZERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
TEMPLATES = sorted((ROOT / "charts" / "fairlead" / "templates").rglob("*.yaml"))
GOLDEN = sorted((ROOT / "tests" / "charts" / "golden").glob("*.yaml"))
PEPPER = b"a pepper of the test"


def head_with(**fields: str) -> RequestHead:
    named = [
        (name.replace("_", "-").encode(), value.encode("utf-8", "surrogateescape")) for name, value in fields.items()
    ]
    return RequestHead("POST", "/v1/chat/completions", named, 11, 0, keep_alive=True, expects_continue=False)


def through(*requests: bytes) -> tuple[list[RawResponse], ScriptedEngine]:
    """Sends bytes to a gateway with one honest engine."""

    async def main() -> tuple[list[RawResponse], ScriptedEngine]:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            answers = [answer for request in requests for answer in await send(running.url, request)]
            return answers, engine

    return run_async(main())


def mentioning(*names: str) -> list[Path]:
    """Returns the sources with one of these words, as only they can import it."""
    return [path for path in SOURCES if any(name in source_text(path) for name in names)]


@cache
def source_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Returns the modules and names that a source imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source_text(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names.update(alias.name for alias in node.names)
    return frozenset(names)


def locked(lock: str) -> dict[str, Version]:
    lines = re.findall(r"^([A-Za-z0-9][^\s;]*==[^\s;]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    return {pin.name: Version(next(iter(pin.specifier)).version) for pin in map(Requirement, lines)}


def golden_objects(kind: str, name: str = "") -> Iterator[dict[str, Any]]:
    for path in GOLDEN:
        if name not in ("", path.name):
            continue
        yield from (document for document in load_documents(path.read_text()) if document and document["kind"] == kind)


def engine_pod(kind: str = "VLLM", **model: Any) -> dict[str, Any]:
    spec = {"model": {"uri": "hf://Qwen/Qwen3-8B", **model}, "pools": [{"acceleratorClassName": "nvidia-l4"}]}
    named = simulated_model("qwen", "chat", engine={"type": kind}, **spec)
    named["metadata"]["uid"] = "u1"
    rendered = render_model(ModelDeployment.model_validate(named), {}, default_context())
    (deployment,) = (manifest for manifest in rendered.manifests if manifest["kind"] == "Deployment")
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


# --- gateways


@pytest.mark.parametrize(
    "key",
    [
        "' OR '1'='1' --",
        "'; DROP TABLE keys; --",
        "x' UNION SELECT token FROM keys --",
        "%27",
        "\x00",
        "{}",
        "a" * 30_000,
        "é\udcff",
    ],
)
def test_cve_2026_42208_an_authorization_header_is_only_digested(key: str) -> None:
    """LiteLLM: SQL in the Authorization header, before authentication."""
    keys = ApiKeys(PEPPER, {key_digest(b"good", PEPPER): "team"})
    for head in (head_with(authorization=f"Bearer {key}"), head_with(x_api_key=key)):
        with pytest.raises(InvalidApiKey):
            keys.caller(head)
    assert keys.caller(head_with(authorization="Bearer good")).key == "team"


def test_litellm_1_82_7_locks_pin_hashes_and_packages_hold_no_startup_file() -> None:
    """LiteLLM's releases of stolen credentials: a `.pth` file ran without an import."""
    locks = [*(ROOT / "requirements").glob("*.txt"), *(ROOT / "requirements" / "images").glob("*.txt")]
    assert len(locks) > 5
    for lock in locks:
        for block in re.split(r"^(?=[a-z0-9])", lock.read_text(), flags=re.MULTILINE | re.IGNORECASE):
            if "==" in block:
                assert "--hash=sha256:" in block, f"{lock.name}: {block[:60]}"
    assert [path for path in ROOT.rglob("*.pth") if not {".venv", "out"} & set(path.relative_to(ROOT).parts)] == []


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "custom_llm_provider"])
async def test_cve_2024_6587_a_client_names_no_upstream(field: str) -> None:
    """LiteLLM: `api_base` in a body sent the provider's key to the attacker."""
    async with scripted_engine() as engine, scripted_engine() as attacker:
        async with running_gateway(fleet_of([engine.url])) as running:
            request = post_request(
                {**GOOD, field: attacker.url}, more=f"x-{field.replace(chr(95), chr(45))}: {attacker.url}\r\n"
            )
            (answer,) = await send(running.url, request)
        assert answer.status in (200, 400)
        assert attacker.connections == 0


def test_cve_2024_8984_a_multipart_body_is_refused_unparsed() -> None:
    """LiteLLM: a boundary with many characters occupied the server."""
    body = b"--x" + b"-" * 200_000 + b"\r\n\r\n--x--"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    (answer,), engine = through(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
    assert 400 <= answer.status < 500
    assert engine.calls == []
    assert not any("multipart" in name for path in mentioning("multipart") for name in imported_names(path))


# --- engines


def test_cve_2025_46570_two_tenants_share_no_cached_prefix() -> None:
    """vLLM: the time to the first token shows whether another tenant sent the same prompt."""
    policies = TenantPolicies(b"secret")

    def isolated(tenant: str) -> tuple[str, tuple[int, ...]]:
        body = json.dumps({**GOOD, "messages": [{"role": "user", "content": "long " * 500}]}).encode()
        request = parse_request("/v1/chat/completions", body, fleet_of([]), Limits())
        http_request = HttpRequest(head_with(), body, "r", 0.0, 0.0, Caller(Tenant(tenant), "key"))
        route = policies.build_route_request(request, http_request, "r")
        return json.loads(request.body)["cache_salt"], route.chain.hashes

    assert isolated("acme") == isolated("acme")
    salt, hashes = isolated("acme")
    other_salt, other_hashes = isolated("zeta")
    assert salt != other_salt
    assert not set(hashes) & set(other_hashes)


def test_cve_2025_59425_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM: the time of the comparison revealed the API key, letter by letter."""
    import hmac

    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda key, other: compared.append((key, other)) or compare(key, other))
    assert not http_access.is_authorized(b"Bearer s3cre", b"s3cret")
    assert http_access.is_authorized(b"Bearer s3cret", b"s3cret")
    assert len(compared) == 2
    # API keys are looked up by their HMAC: keys that begin alike have unrelated digests.
    digests = [key_digest(b"fl_abcdef" + end, PEPPER) for end in (b"1", b"2")]
    assert digests[0][:2] != digests[1][:2]


@pytest.mark.parametrize(
    "fields",
    [{"n": 10**9}, {"n": 129}, {"n": -1}, {"n": 1e300}, {"max_tokens": 10**12}, {"top_logprobs": 10**9},
     {"stop": ["x"] * 100_000}, {"messages": []}],
)  # fmt: skip
def test_cve_2026_34756_one_request_cannot_exhaust_an_engine(fields: dict[str, Any]) -> None:
    """vLLM: a billion choices, and other values that kill the engine of all callers."""
    with pytest.raises(BadRequest):
        parse_request("/v1/chat/completions", json.dumps({**GOOD, **fields}).encode(), fleet_of([]), Limits())
    body = b'{"model": "tiny", "prompt": "hi", "best_of": 1000000000}'
    with pytest.raises(BadRequest):
        parse_request("/v1/completions", body, fleet_of([]), Limits())


def test_cve_2025_48956_headers_have_a_bound() -> None:
    """vLLM: headers without a limit."""
    large = b"POST /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n"
    many = b"POST /v1/models HTTP/1.1\r\nhost: x\r\n" + b"x: a\r\n" * 200 + b"\r\n"
    for request in (large, many):
        (answer,), engine = through(request)
        assert answer.status == 431
        assert engine.calls == []


def test_cve_2026_24779_engines_fetch_no_media_urls() -> None:
    """vLLM: media URLs reached services inside of the cluster, one by another URL parser."""
    for kind in ("VLLM", "SGLang"):
        text = json.dumps(engine_pod(kind))
        assert "media.invalid" in text
    assert {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"} in engine_pod()["containers"][0]["env"]


def test_cve_2026_22807_no_engine_runs_code_of_a_model() -> None:
    """vLLM: `auto_map` of a model ran its code although that was switched off."""
    revision = "9c925d64d72725edaf899c6cb9c377fd0709d9c5"
    text = json.dumps(engine_pod(revision=revision))
    assert "trust-remote-code" not in text
    assert revision in text  # what was reviewed is what runs


def test_cve_2025_30202_events_are_data_and_no_objects() -> None:
    """ShadowMQ (vLLM, SGLang, Meta): pickled objects from the network."""
    assert [path for path in mentioning(*SERIALIZERS) if SERIALIZERS & imported_names(path)] == []

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("the object was built",))

    with pytest.raises(FairleadError):
        list(event_slices(pickle.dumps(Payload()), Limits()))


def test_cve_2023_48022_the_management_port_takes_no_commands() -> None:
    """Ray: an open job API, and a DELETE from a browser that stops Serve."""
    guard = AccessGuard(lambda *_: pytest.fail("the request passed"), tokens=ManageTokens("s3cret"))  # type: ignore[arg-type,return-value]

    def status(method: str, path: str, **headers: str) -> int:
        fields = [(b"host", b"127.0.0.1:9000"), *((name.encode(), value.encode()) for name, value in headers.items())]
        refusal = guard.refusal(
            {"type": "http", "method": method, "path": path, "headers": fields, "client": ("127.0.0.1", 1)}
        )
        return 200 if refusal is None else refusal[0]

    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert status(method, "/api/fleet", authorization="Bearer s3cret") == 405
    assert status("GET", "/api/fleet") == 401
    assert status("GET", "/api/fleet", authorization="Bearer s3cret", origin="https://evil.example") == 403
    assert status("GET", "/api/fleet", authorization="Bearer s3cret") == 200


# --- platforms and libraries


def test_cve_2025_1974_no_webhook_builds_configuration_from_text() -> None:
    """ingress-nginx: an admission webhook rendered what users wrote."""
    assert TEMPLATES
    assert [path.name for path in TEMPLATES if "WebhookConfiguration" in path.read_text()] == []
    assert not any("jinja2" in imported_names(path) for path in mentioning("jinja2"))


def test_cve_2026_22815_trailers_have_a_bound() -> None:
    """aiohttp: trailers without a limit."""
    body = json.dumps(GOOD).encode()
    trailers = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 100) for number in range(1_000))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    (answer,), engine = through(head + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers))
    assert 400 <= answer.status < 500
    assert engine.calls == []
    assert locked("dev.txt")["aiohttp"] >= Version("3.13.4")


def test_cve_2025_62727_no_file_is_served_in_ranges() -> None:
    """starlette: a Range header was merged in quadratic time."""
    names = {"FileResponse", "StaticFiles", "starlette.staticfiles"}
    assert [path for path in mentioning(*names) if names & imported_names(path)] == []
    assert locked("dev.txt")["starlette"] > Version("0.49.0")


def test_cve_2026_7482_nothing_listens_beyond_loopback_without_keys() -> None:
    """Ollama and LMDeploy: open to the network without authentication."""
    with pytest.raises(SettingsError, match="would serve anyone"):
        gateway_main._parse_address("0.0.0.0:8080", "--listen", open_to_all=True, fix="--keys FILE")
    assert gateway_main._parse_address("127.0.0.1:8080", "--listen", open_to_all=True, fix="--keys FILE")
    for deployment in golden_objects("Deployment", "defaults.yaml"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert "--insecure" not in container.get("args", [])


def test_kserve_4402_no_host_path_and_no_secrets_of_the_cluster() -> None:
    """KServe: hostPath volumes, and a ClusterRole that reads every Secret."""
    assert [path.name for path in TEMPLATES if "hostPath" in path.read_text()] == []
    assert all("hostPath" not in volume for volume in engine_pod().get("volumes", []))
    roles = list(golden_objects("ClusterRole"))
    assert roles
    rules = [rule for role in roles for rule in role.get("rules") or []]
    assert [rule for rule in rules if {"secrets", "*"} & set(rule.get("resources", []))] == []


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64))
def test_aibrix_2329_a_block_is_known_by_all_before_it(first: bytes, other: bytes) -> None:
    """AIBrix: the last block and the count were the key, so other prompts had the same one."""
    ending = b"the same ending " * 256
    hashes = prefix_chain(first.ljust(256) + ending, secret=b"s", seed=b"m").hashes
    other_hashes = prefix_chain(other.ljust(256) + ending, secret=b"s", seed=b"m").hashes
    assert len(hashes) == len(other_hashes)
    assert (set(hashes) & set(other_hashes) == set()) == (first.ljust(256) != other.ljust(256))


def test_hiredis_3_4_1_nested_replies_are_an_error() -> None:
    """hiredis: nested replies of a server overflowed the stack."""
    assert locked("dev.txt")["hiredis"] >= Version("3.4.1")
    code = (
        "import hiredis\nreader = hiredis.Reader()\nreader.feed(b'*1\\r\\n' * 200_000)\n"
        "try:\n    print(reader.gets())\nexcept hiredis.ProtocolError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("refused", "False")
