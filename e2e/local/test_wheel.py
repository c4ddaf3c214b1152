"""A release's wheel on a machine with Python and a package registry: installed as the pages say,
without a compiler.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from e2e.local.fresh_environment import FreshEnvironment
from fairlead import __version__
from fairlead.distribution import WHEEL
from fairlead_testing.processes import block_until, descendants

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.extended
FIRST_TOKEN_SECONDS = 60.0
"""A promise of the release: from the start of `fairlead up` to the first token."""

_SEAM = """
from importlib.util import find_spec
from types import SimpleNamespace as Endpoint
from fairlead_sim.seams import autoscaler, router
from fairlead_sim.adapters.external_request import ExternalRequest
from fairlead_sim.gateways import late_binding
from fairlead_sim.workload.traces import TraceRequest

assert [name for name in ("transcripts", "faults") if find_spec(f"fairlead_sim.{name}")] == []
core = router({"n": 2, "live": ["a", "b"], "block_tokens": 512, "ttft_slo": 2.0, "prefill_s_per_token": 1e-4})
endpoints = [
    Endpoint(
        id=id, up=True, inflight=0, waiting=0, running=0, held=0, pending_prefill_tokens=0, inflight_tokens=0,
        kv_util=0.0, matched_tokens=0,
    )
    for id in ("a", "b")
]
request = ExternalRequest(TraceRequest("r", 0.0, 1_024, 8, (1, 2)), (11, 12))
chosen = core.pick(request, endpoints, 0.0)
assert chosen in ("a", "b")
assert core.rebalance(endpoints, 0.0) == []
assert core.order_key(request) is not None
core.on_first_token(request, chosen, 0.2, 0)
core.on_complete(request, chosen, 0.5, 8)
profile = {"step_base": 0.01, "step_per_seq": 1e-4, "step_per_kv_token": 1e-8, "step_per_prompt_token": 1e-4}
pool = {"role": "both", "cost": 1.0, "min": 1, "max": 4, "max_num_seqs": 64, "kv_tokens": 100_000}
pool |= {"startup_p50": 60.0, "startup_p90": 90.0, "profile": profile | {"chunk": 512}}
info = {"slo": {"ttft": 2.0, "itl": 0.1}, "timeout": 30.0, "interval": 5.0, "pools": {"main": pool}}
scaler = autoscaler(info | {"ttft_le": [1.0, 2.0], "itl_le": [0.05, 0.1]})
counts = {"desired": 1, "ready": 1, "pending": 0, "draining": 0, "pending_age": []}
print(scaler.step({"t": 5.0, "gateway": None, "pools": {"main": counts | {"replicas": None}}}))
"""
"""Drives both seams of outside tools, with holding and rebalancing."""


@dataclass(frozen=True, slots=True)
class RunningUp:
    """A ``fairlead up`` with its first lines. started: of its command, by the monotonic clock."""

    process: subprocess.Popen[str]
    url: str
    started: float


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    """The wheel of ``make release`` in a new virtual environment."""
    folder = tmp_path_factory.mktemp("laptop")
    release = [sys.executable, "scripts/release", "wheel", "--out", str(folder / "dist")]
    subprocess.run(release, cwd=ROOT, check=True, capture_output=True)
    environment = FreshEnvironment(folder)
    environment.pip("install", "--only-binary", ":all:", str(folder / "dist" / WHEEL))
    return environment


@pytest.fixture
def up(installed: FreshEnvironment) -> Iterator[RunningUp]:
    """``fairlead up`` on free ports, with the bundled example, until Ctrl-C."""
    started = time.monotonic()
    process = subprocess.Popen(
        [installed.program("fairlead"), "up", "--listen", ":0", "--manage", ":0", "--plain"],
        cwd=installed.folder,
        env=installed.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("ready"):
            break
    else:
        pytest.fail("fairlead up ended without a ready line:\n" + "".join(lines))
    yield RunningUp(process, next(word for word in lines[-1].split() if word.startswith("http")).rstrip("/"), started)
    children = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    block_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "no process is left")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_fairlead_up_streams_a_token_soon_after_the_installation(up: RunningUp) -> None:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
        model = next(iter(client.models.list())).id
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
            max_tokens=8,
            stream=True,
        )
        text = next(piece.choices[0].delta.content for piece in stream if piece.choices[0].delta.content)
    seconds = time.monotonic() - up.started
    print(f"first token {text!r} after {seconds:.1f} s")
    assert seconds < FIRST_TOKEN_SECONDS


def test_no_compiler_was_within_reach(installed: FreshEnvironment) -> None:
    for compiler in ("cc", "gcc", "clang", "go", "rustc"):
        done = subprocess.run(["/bin/sh", "-c", f"command -v {compiler}"], env=installed.variables, check=False)
        assert done.returncode != 0, compiler


def test_the_first_commands_work_without_an_extra(installed: FreshEnvironment) -> None:
    assert installed.run("fairlead", "--version").stdout.strip() == __version__
    lint = installed.run("fairlead", "lint", str(ROOT / "examples" / "01-smallest.yaml"))
    assert (lint.returncode, lint.stderr) == (0, "")
    for words in (["demo", "--help"], ["chat", "--help"], ["status", "--help"], ["completion", "bash"]):
        assert installed.run("fairlead", *words).returncode == 0, words
    kubectl = installed.run("kubectl-fairlead", "status", "--kubeconfig", str(installed.folder / "absent"))
    assert kubectl.returncode == 3
    assert "Traceback" not in kubectl.stderr


def test_outside_tools_drive_the_seams_of_the_wheel(installed: FreshEnvironment) -> None:
    driven = installed.run("python", "-c", _SEAM)
    assert driven.returncode == 0, driven.stderr


def test_the_operator_works_with_its_extra_and_names_it_without(installed: FreshEnvironment) -> None:
    missing = installed.run("fairlead-operator")
    assert missing.returncode == 2
    assert f"pip install '{WHEEL}[operator]'" in missing.stderr
    installed.pip("install", "--only-binary", ":all:", f"{installed.folder / 'dist' / WHEEL}[operator]")
    assert "this needs" not in installed.run("fairlead-operator").stderr


def test_the_kubectl_plugin_installs_itself_at_its_first_call(installed: FreshEnvironment) -> None:
    dist = installed.folder / "dist"
    release = [sys.executable, "scripts/release", "kubectl-plugin", "--out", str(dist)]
    subprocess.run(release, cwd=ROOT, check=True, capture_output=True)
    plugin = installed.folder / "plugin"
    with tarfile.open(dist / f"kubectl-fairlead-{__version__}.tar.gz") as tar:
        tar.extractall(plugin, filter="data")
    variables = installed.variables | {"PATH": "/usr/bin:/bin", "HOME": str(plugin), "FAIRLEAD_PYTHON": sys.executable}
    command = [str(plugin / "kubectl-fairlead"), "version", "--client", "-o", "json"]
    first, second = (subprocess.run(command, env=variables, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["client"]["version"] == __version__
    assert "once ..." in first.stderr
    assert (second.stdout, second.stderr) == (first.stdout, "")
