"""Pods with engines whose command lines are not read: the message names the engine and the way."""

from pathlib import Path

import pytest

from fairlead_testing.cli.command_line import run_command_line

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat, labels: {labels}}}
spec:
  selector: {{matchLabels: {{app: chat}}}}
  template:
    metadata: {{labels: {{app: chat}}}}
    spec:
      containers:
        - {{name: web, image: "ghcr.io/open-webui/open-webui:main"}}
        - {{name: main, image: "{image}", command: {command}, env: [{{name: OLLAMA_KEEP_ALIVE, value: 24h}}]}}
"""
SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: chat}}
spec: {{predictor: {{containers: [{{name: kserve-container, image: "{image}"}}]}}}}
"""
AIBRIX = "{model.aibrix.ai/name: chat}"
BY_HAND = "keep it, and write a ModelDeployment with `engine.type: External` that leads to it"


def texts_of(file: Path, text: str, *options: str) -> str:
    file.write_text(text)
    done = run_command_line("convert", *options, "--accelerator", "nvidia-l4", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize(
    ("image", "command", "said"),
    [
        ("ollama/ollama:0.6.2", "[]", f"Fairlead does not run Ollama: {BY_HAND}"),
        ("registry.example/mirror/ollama@sha256:00", "[]", "does not run Ollama"),
        ("ghcr.io/huggingface/text-generation-inference:3.0", "[]", f"does not run TGI: {BY_HAND}"),
        ("quay.io/go-skynet/local-ai:v2", "[]", "does not run LocalAI"),
        (
            "ghcr.io/ggml-org/llama.cpp:server-cuda",
            "[]",
            "reads no command line of llama.cpp: write a ModelDeployment ",
        ),
        ("me/mine:1", "[/app/llama-server, -m, /m.gguf]", "with `engine.type: LlamaCpp`"),
        ("nvcr.io/nvidia/tensorrt-llm/release:1.0", "[trtllm-serve, serve, a/b]", "with `engine.type: TRTLLM`"),
    ],
)
def test_engine_of_a_workload_is_named(tmp_path: Path, image: str, command: str, said: str) -> None:
    found = texts_of(tmp_path / "a.yaml", DEPLOYMENT.format(image=image, command=command, labels="{}"))
    assert "Deployment chat: not carried over: " in found
    assert said in found
    assert "apply it as before" not in found


@pytest.mark.parametrize("options", [(), ("--external",)])
@pytest.mark.parametrize(
    "text",
    [SERVICE, DEPLOYMENT.replace("{command}", "[]").replace("{labels}", AIBRIX.replace("{", "{{").replace("}", "}}"))],
)
def test_engine_of_another_system_is_named(tmp_path: Path, text: str, options: tuple[str, ...]) -> None:
    found = texts_of(tmp_path / "a.yaml", text.format(image="ollama/ollama:0.6"), *options)
    assert f"Fairlead does not run Ollama ({BY_HAND})" in found


@pytest.mark.parametrize("image", ["postgres:17", "me/ollama-webui:1", "me/prometheus-ollama-exporter:1"])
def test_other_workloads_stay_as_they_are(tmp_path: Path, image: str) -> None:
    found = texts_of(tmp_path / "a.yaml", DEPLOYMENT.format(image=image, command="[]", labels="{}"))
    assert "it stays as it is: apply it as before" in found
