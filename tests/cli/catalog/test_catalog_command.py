"""``fairlead catalog``: manifests that the API, the operator and the engines take."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.manifests.lint import lint_engine_arguments
from fairlead_cli.app import build_app
from fairlead_cli.catalog.entry import IMAGES, read_entries
from fairlead_cli.catalog.roofline import accelerator_figures
from fairlead_operator.render import render_model
from fairlead_testing.cli.command_line import run_command_line
from fairlead_testing.kube.render_cases import default_context
from fairlead_testing.yaml_documents import load_document, load_documents

ROOT = Path(__file__).parents[3]
ENGINE_FLAGS = json.loads((ROOT / "fairlead" / "manifests" / "engine_flags.json").read_text(encoding="utf-8"))
DEVICE = ("--on=large", "--memory=192Gi")
"""A device on eight of which every model of the catalogue fits."""


app = cache(build_app)
_generated: dict[tuple[str, str], str] = {}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Returns the exit code and what went to standard output and standard error."""
    code = app()(["catalog", *words], result_action="return_value")
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def generated(capsys: pytest.CaptureFixture[str], model: str, engine: str) -> str:
    """Returns the manifest of a model on an engine, for two replicas; generates it once."""
    if (model, engine) not in _generated:
        code, text, _ = run(capsys, "show", model, *DEVICE, f"--engine={engine}", "--replicas=2")
        assert code == 0
        _generated[model, engine] = text
    return _generated[model, engine]


def documents(text: str) -> list[dict[str, Any]]:
    return list(load_documents(text))


@cache
def crd_validator(name: str) -> Any:
    """Returns the validator of a CRD's objects, after a check of its schema."""
    crd = load_document((ROOT / "crds" / f"{name}.yaml").read_text(encoding="utf-8"))
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", read_entries())
def test_every_manifest_is_valid_and_renders(model: str, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    (document,) = documents(generated(capsys, model, engine))
    crd_validator("modeldeployments").validate(document)
    document["metadata"] |= {"namespace": "default", "uid": "u"}
    parsed = ModelDeployment.model_validate(document)
    assert list(lint_engine_arguments(parsed.spec)) == []
    large = builtin_accelerators()["nvidia-h100"].model_copy(update={"metadata": parsed.metadata})
    rendered = render_model(parsed, {"large": large}, default_context())
    assert rendered.problems == ()
    (workload,) = (manifest for manifest in rendered.manifests if manifest["kind"] == "Deployment")
    container = workload["spec"]["template"]["spec"]["containers"][0]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == parsed.spec.pools[0].parallelism.tensor


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("model", read_entries())
def test_flags_and_parsers_exist_in_the_engines(model: str, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    (document,) = documents(generated(capsys, model, engine))
    arguments = dict(argument.partition("=")[::2] for argument in document["spec"]["engine"]["args"])
    known = ENGINE_FLAGS[engine]
    assert set(arguments) <= set(known["flags"])
    if "--tool-call-parser" in arguments:
        assert arguments["--tool-call-parser"] in known["tool_parsers"]
        assert engine == "sglang" or "--enable-auto-tool-choice" in arguments
    if "--reasoning-parser" in arguments:
        assert arguments["--reasoning-parser"] in known["reasoning_parsers"]


def test_images_are_of_the_versions_whose_parsers_are_known() -> None:
    for engine, image in IMAGES.items():
        assert image.rpartition(":v")[2] == ENGINE_FLAGS[engine]["version"]


@pytest.mark.parametrize("model", read_entries())
def test_every_entry_has_sources(model: str) -> None:
    entry = read_entries()[model]
    assert entry.config_sources
    assert entry.parser_sources or entry.vllm == entry.sglang
    for source in (*entry.config_sources, *entry.parser_sources):
        assert " in " in source, source
        assert " at " in source or "wheel of" in source, source


def test_a_manifest_says_what_it_needs_and_where_the_figures_are_from(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "show", "qwen3-32b", "--on=nvidia-h100")
    assert code == 0
    assert "# weights            61 GiB: 32.8 billion parameters, bfloat16" in text
    assert "# KV of one request  10 GiB: 40,960 tokens, 64 layers × 8 KV heads" in text
    assert "Qwen--Qwen3-32B_config.json in ai-dynamo/aiconfigurator at " in text
    (document,) = documents(text)
    assert document["spec"]["pools"] == [
        {"acceleratorClassName": "nvidia-h100", "minReplicas": 1, "parallelism": {"tensor": 2}}
    ]
    assert "--max-model-len=40960" in document["spec"]["engine"]["args"]


def test_what_does_not_fit_ends_with_one_and_no_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, message = run(capsys, "show", "qwen3-32b", "--on=nvidia-h100", "--tensor=1")
    assert (code, text) == (1, "")
    assert "needs 61 GiB for weights and 10 GiB of KV for one request of 40,960 tokens; 1 × 69.8 GiB" in message
    assert "--context ≤ " in message


def test_the_class_of_a_model_has_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "show", "qwen3-8b", "--on=nvidia-h100", "--with-class")
    assert code == 0
    written, model = documents(text)
    crd_validator("acceleratorclasses").validate(written)
    parsed = AcceleratorClass.model_validate(written)
    assert model["spec"]["pools"][0]["acceleratorClassName"] == parsed.metadata.name == "nvidia-h100-qwen3-8b"
    profile: EngineProfile = parsed.spec.profile.to_engine_profile("any")
    llama = builtin_accelerators()["nvidia-h100"].spec.profile.to_engine_profile("any")
    # 8.2 billion parameters, where the built-in profile has 8.0: nearly as fast.
    for prompt in (1_024, 8_192):
        assert profile.prefill_time(prompt) == pytest.approx(llama.prefill_time(prompt), rel=0.2)
    assert profile.kv_tokens > 300_000


def test_options_of_the_deployment_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--name=chat", "--image=registry/vllm:1", "--secret=hf", "--context=4096")
    _, text, _ = run(capsys, "show", "llama-3.1-8b", "--on=nvidia-l4", *words)
    (document,) = documents(text)
    assert document["metadata"] == {"name": "chat"}
    assert document["spec"]["model"]["credentials"] == {"secretRef": {"name": "hf"}}
    assert document["spec"]["engine"]["image"] == "registry/vllm:1"
    # The template is a file of the official image.
    assert not any("--chat-template" in argument for argument in document["spec"]["engine"]["args"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "qwen3-23b", "--on=nvidia-h100"), "no model 'qwen3-23b'"),
        (("show", "qwen3-8b", "--on=tin-foil"), "memory of tin-foil is not known"),
        (("show", "qwen3-8b", "--on=own", "--memory=much"), "'much' is not a size"),
        (("show", "qwen3-8b", "--on=own", "--memory=80Gi", "--with-class"), "speed of own is not known"),
        (("show", "qwen3-8b", "--on=amd-mi300x"), "knows no image of vllm for amd-mi300x"),
        (("list", "--on=own"), "memory of own is not known"),
    ],
)
def test_wrong_usage_is_refused(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match=message):
        run(capsys, *words)


@pytest.mark.parametrize("accelerator", sorted({*accelerator_figures()} - {"google-tpu-v5e"}))
def test_a_class_is_valid_on_every_accelerator(accelerator: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"--on={accelerator}", "--image=registry/engine:1", "--context=8192", "--with-class")
    code, text, _ = run(capsys, "show", "qwen3-8b", *words)
    assert code == 0
    written, model = documents(text)
    crd_validator("acceleratorclasses").validate(written)
    AcceleratorClass.model_validate(written)
    known = builtin_accelerators()[accelerator].spec
    assert written["spec"]["resource"] == known.resource
    assert model["spec"]["pools"][0].get("parallelism", {"tensor": 1}) == {"tensor": 1}


def test_a_small_device_needs_several(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "show", "qwen3-8b", "--on=google-tpu-v5e", "--image=registry/engine:1")
    assert documents(text)[0]["spec"]["pools"][0]["parallelism"] == {"tensor": 4}


def test_the_list_shows_devices_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[1:]] == list(read_entries())
    assert "DEVICES" not in text
    _, text, _ = run(capsys, "list", "--on=nvidia-h100", "--output=wide")
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["qwen3-32b"][-3:] == ["2", "hermes", "qwen3"]
    assert rows["kimi-k2"][-3] == "–"


def test_the_list_is_a_document_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "list", "--on=nvidia-h100", "--output=json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert rows["qwen3-32b"]["devices"] == 2
    assert rows["kimi-k2"]["devices"] is None
    assert rows["gpt-oss-20b"]["toolCallParser"] == {"vllm": "openai", "sglang": "gpt-oss"}


def test_accelerators_with_figures_are_built_in() -> None:
    assert set(accelerator_figures()) <= set(builtin_accelerators())


def test_a_gated_model_names_its_secret_and_how_to_make_it() -> None:
    gated = run_command_line("catalog", "show", "llama-3.1-8b", "--on", "nvidia-h100").stdout
    assert load_document(gated)["spec"]["model"]["credentials"] == {"secretRef": {"name": "hf-token"}}
    assert "# kubectl create secret generic hf-token --from-literal=HF_TOKEN=…" in gated
    own = run_command_line("catalog", "show", "llama-3.1-8b", "--on", "nvidia-h100", "--secret", "mine").stdout
    assert "generic mine" in own
    assert "hf-token" not in own
    assert "credentials" not in run_command_line("catalog", "show", "qwen3-8b", "--on", "nvidia-h100").stdout


def test_the_last_comments_become_fields_once_their_mark_is_removed(tmp_path: Path) -> None:
    text = run_command_line("catalog", "show", "qwen3-8b", "--on", "nvidia-h100").stdout
    text = text.replace("  # slo:", "  slo:").replace("  # autoscaling:", "  autoscaling:")
    text = text.replace("    minReplicas: 1\n", "    minReplicas: 1\n    maxReplicas: 4\n")
    text = text.replace("    uri:", "    cache: {claimName: models}\n    uri:")
    (tmp_path / "model.yaml").write_text(text)
    assert "cache: {claimName: models}" in text.partition("# To keep")[2]
    done = run_command_line("lint", str(tmp_path / "model.yaml"))
    assert done.returncode == 0, done.stdout
