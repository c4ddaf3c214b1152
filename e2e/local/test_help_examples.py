"""The examples in the help of verbs, run as they stand against a stack on this machine."""

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fairlead_cli.app import with_default_verb
from fairlead_cli.examples import EXAMPLES
from fairlead_sim.workload.traces import BUNDLED_TRACE
from fairlead_testing.local_stack import LocalStack

ROOT = Path(__file__).parents[2]
MODEL = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  model: {{uri: "hf://org/tiny"}}
  pools: [{{acceleratorClassName: npu-910b4, minReplicas: 2}}]
---
"""
TENANT = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelTenant
metadata: {name: acme}
spec: {keys: KEYS}
"""
KEY = f'[{{name: ci, digest: "3f9a1c{"0" * 58}"}}]'
NOT_HERE = {
    "up": "serves until Ctrl-C",
    "demo": "has a test of its own",
    "replay": "measures for minutes",
    **dict.fromkeys(("status", "check", "support-bundle", "audit", "airgap images"), "needs a cluster, or its files"),
    **dict.fromkeys(("explain scaling", "replay-scaling", "index watch"), "needs an autoscaler, or waits for changes"),
    **{f"rollout {word}": "needs a cluster" for word in ("status", "pause", "resume", "undo", "promote")},
}
ABSENT = (
    "--watch",
    "--tenant",
    "qwen3-8b-next",
    "adapters",
    "routes",
    "--adapter",
    "explain shadow",
    "req-",
    "usage",
    "cost",
)
"""Parts of examples about what this stack lacks: they end with 1 and say so, or never."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("stack")
    manifest = "".join(MODEL.format(name=name) for name in ("qwen3-8b", "qwen2.5-7b"))
    with LocalStack(folder, "--plain", manifest=manifest) as up:
        up.wait_ready()
        body = {"model": "qwen3-8b", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        yield up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    shutil.copy(ROOT / "examples" / "01-smallest.yaml", made / "model.yaml")
    (made / "manifests").mkdir()
    shutil.copy(ROOT / "examples" / "03-two-models.yaml", made / "manifests")
    (made / "prompt.txt").write_text("Why is the sky blue?")
    request = {"model": "qwen3-8b", "messages": [{"role": "user", "content": "hello"}]}
    (made / "request.json").write_text(json.dumps(request))
    (made / "tokens.json").write_text(json.dumps(list(range(64))))
    litellm = {"model_list": [{"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": "http://h/v1"}}]}
    (made / "config.yaml").write_text(json.dumps(litellm))
    kubeai = {"apiVersion": "kubeai.org/v1", "kind": "Model", "metadata": {"name": "m"}}
    kubeai["spec"] = {"url": "hf://org/tiny", "engine": "VLLM", "features": ["TextGeneration"]}
    (made / "old.yaml").write_text(json.dumps(kubeai))
    with gzip.open(BUNDLED_TRACE) as trace:
        (made / "trace.jsonl").write_bytes(b"".join(trace.readlines()[:40]))
    return made


@pytest.mark.parametrize(
    "example", [line for words, lines in EXAMPLES.items() if words not in NOT_HERE for line in lines]
)
def test_an_example_runs(example: str, stack: LocalStack, folder: Path) -> None:
    words = with_default_verb(shlex.split(example))
    words = ["40" if word == "400" else word for word in words]  # requests of a simulation
    if words[:2] in (["tenants", "list"], ["tenants", "show"]) or words[0] == "keys":
        words += [] if "--file" in words else ["--file", "tenants.yaml"]
    (folder / "tenants.yaml").write_text(TENANT.replace("KEYS", "[]" if "create" in words else KEY))
    if "--watch" in words:
        words.remove("--watch")
    environment = {**stack.environment, "FAIRLEAD_KEY_PEPPER": "pepper"}
    environment.pop("KUBECONFIG", None)
    command = [sys.executable, "-m", "fairlead_cli", *words]
    given = "[1, 2, 3]" if "--tokens" in words else (folder / "model.yaml").read_text()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, input=given, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    lacks = any(part in example for part in ABSENT)
    assert done.returncode in ((0, 1, 2, 3) if lacks else (0,)), (done.returncode, done.stdout, done.stderr)
