"""Routes of other systems as ModelRoutes: kthena's rules, LiteLLM's weights, KServe's canaries."""

import copy
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairlead.api.spec.route.spec import MAX_WEIGHT
from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.loader import combine_texts
from fairlead.manifests.routes import plan_routes
from fairlead_cli.migration.draft import MigrationOptions, whole_weights
from fairlead_cli.migration.field_reader import Note, Outcome
from fairlead_cli.migration.systems import Migration, migrate
from fairlead_testing.yaml_documents import load_documents

FOLDER = Path(__file__).parent / "manifests"


def load(name: str) -> list[dict[str, Any]]:
    return list(load_documents((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def convert(documents: list[dict[str, Any]], *, external: bool = False) -> Migration:
    return migrate([("f.yaml", document) for document in documents], MigrationOptions("nvidia-h100", external))


def specs(migration: Migration, kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one["spec"] for one in migration.manifests if one["kind"] == kind}


def notes_of(migration: Migration, field: str) -> list[Note]:
    return [note for note in migration.notes if note.field == field]


@pytest.mark.parametrize("name", ["kthena-routes", "kserve-canary", "litellm-split"])
@pytest.mark.parametrize("external", [False, True])
def test_the_output_serves_together_on_one_machine(name: str, external: bool) -> None:
    manifests = convert(load(name), external=external).manifests
    text = yaml.safe_dump_all(manifests)
    loaded, problems = combine_texts([("out.yaml", text)], limits=Limits())
    assert not problems
    has_route = not (name == "kserve-canary" and external)
    assert len(plan_routes(loaded)) == has_route


def test_rules_of_kthena_become_overrides_and_targets() -> None:
    migration = convert(load("kthena-routes"))
    assert specs(migration, "ModelRoute") == {
        "assistant": {
            "servedNames": ["acme/assistant"],
            "targets": [{"model": "qwen-v1-external", "weight": 70}, {"model": "qwen-v2-external", "weight": 30}],
            "overrides": [{"headers": {"User-Type": "premium"}, "targets": [{"model": "qwen-v2-external"}]}],
        }
    }
    said = {note.field: note.reason for note in migration.notes}
    assert said["spec.rules[0]"].startswith("modelMatch.body.model: lora-a is another name")
    assert said["spec.rules[1]"].startswith("modelMatch.headers.x-user: a route compares whole values")
    assert said["spec.rules"] == "rules[1] takes every request: no rule after it is reached"
    assert "ModelTenant" in said["spec.rateLimit"]
    assert {"spec.parentRefs", "spec.loraAdapters", "spec.trafficPolicy", "spec.kvConnector"} <= said.keys()


def test_servers_of_kthena_become_external_models() -> None:
    migration = convert(load("kthena-routes"))
    models = specs(migration, "ModelDeployment")
    first, second = models["qwen-v1-external"], models["qwen-v2-external"]
    assert first["model"] == {"uri": "hf://Qwen/Qwen3-8B", "servedNames": ["Qwen/Qwen3-8B"]}
    assert first["pools"][0]["selector"] == {"matchLabels": {"app": "qwen", "version": "v1"}, "port": 8000}
    labels = {"app": "qwen", "version": "v2", "role": "decode"}
    assert second["pools"][0]["selector"] == {"matchLabels": labels, "port": 30000}
    [note] = notes_of(migration, "spec.workloadPort.protocol")
    assert note.outcome is Outcome.REQUIRED


def kthena_route(**fields: Any) -> list[dict[str, Any]]:
    documents = copy.deepcopy(load("kthena-routes"))
    rules = [{"targetModels": [{"modelServerName": "qwen-v1"}]}]
    documents[2]["spec"] = {"modelName": "assistant", "rules": rules} | fields
    return documents


def test_a_name_that_engines_have_needs_no_route() -> None:
    migration = convert(kthena_route(modelName="Qwen/Qwen3-8B"))
    assert not specs(migration, "ModelRoute")
    [note] = notes_of(migration, "spec.modelName")
    assert note.outcome is Outcome.CHANGED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {
                "modelName": "Qwen/Qwen3-8B",
                "rules": [{"targetModels": [{"modelServerName": "qwen-v1"}, {"modelServerName": "qwen-v2"}]}],
            },
            "spec.modelName",
        ),
        ({"modelName": "", "loraAdapters": ["lora-a"]}, "spec.modelName"),
        (
            {
                "rules": [
                    {"modelMatch": {"headers": {"a": {"exact": "b"}}}, "targetModels": [{"modelServerName": "qwen-v1"}]}
                ]
            },
            "spec.rules",
        ),
    ],
)
def test_a_route_of_kthena_that_none_can_stand_for_is_reported(fields: dict[str, Any], field: str) -> None:
    migration = convert(kthena_route(**fields))
    assert not specs(migration, "ModelRoute")
    assert Outcome.DROPPED in [note.outcome for note in notes_of(migration, field)]


def test_a_server_of_kthena_that_is_missing_is_reported() -> None:
    migration = convert(load("kthena-routes")[2:])
    assert "qwen-v1-external" in str(specs(migration, "ModelRoute"))
    notes = [note for note in migration.notes if note.outcome is Outcome.REQUIRED]
    assert Counter(note.reason for note in notes)["qwen-v1 is not among the files: give it too, with -f"]


def test_a_server_of_kthena_without_a_model_gets_the_name_of_requests() -> None:
    documents = kthena_route()
    del documents[0]["spec"]["model"]
    migration = convert(documents)
    assert specs(migration, "ModelDeployment")["qwen-v1-external"]["model"]["servedNames"] == ["assistant"]
    assert not specs(migration, "ModelRoute")


def test_weights_of_litellm_become_a_route() -> None:
    migration = convert(load("litellm-split"))
    assert specs(migration, "ModelRoute") == {
        "assistant": {
            "servedNames": ["chat"],
            "targets": [{"model": "assistant-qwen3-8b", "weight": 9}, {"model": "assistant-qwen3-14b", "weight": 1}],
        }
    }
    models = specs(migration, "ModelDeployment")
    assert models["assistant-qwen3-8b"]["pools"][0]["endpoints"] == [{"url": "http://a:8000"}, {"url": "http://b:8000"}]
    assert models["assistant-qwen3-8b"]["model"]["servedNames"] == ["Qwen/Qwen3-8B"]
    assert models["plain"]["model"]["servedNames"] == ["plain", "secret"]
    assert not notes_of(migration, "model_list[0].litellm_params.weight")
    [note] = notes_of(migration, "model_list[3].litellm_params.weight")
    assert note.outcome is Outcome.DROPPED
    [note] = notes_of(migration, "router_settings.model_group_alias")
    assert "secret" in note.reason


@pytest.mark.parametrize(
    ("first", "second", "weights"),
    [({}, {}, [1, 1]), ({"rpm": 300}, {"rpm": 100}, [3, 1]), ({"weight": 0, "tpm": 4}, {"tpm": 6}, [2, 3])],
)
def test_shares_are_those_of_simple_shuffle(first: dict[str, int], second: dict[str, int], weights: list[int]) -> None:
    entries = [
        {"model_name": "chat", "litellm_params": {"model": f"openai/{name}", "api_base": "http://a:8000", **more}}
        for name, more in (("a", first), ("b", second))
    ]
    [spec] = specs(convert([{"model_list": entries}]), "ModelRoute").values()
    assert [target["weight"] for target in spec["targets"]] == weights


@pytest.mark.parametrize(
    ("name", "more", "field"),
    [("a", {}, "model_name"), ("chat", {"weight": -1}, "weight"), ("chat", {"weight": "x"}, "weight")],
)
def test_a_split_of_litellm_that_is_wrong_names_its_field(name: str, more: dict[str, Any], field: str) -> None:
    entries = [
        {"model_name": name, "litellm_params": {"model": f"openai/{engine}", "api_base": "http://a:8000", **more}}
        for engine in ("a", "b")
    ]
    with pytest.raises(BadInput) as refused:
        convert([{"model_list": entries}])
    assert (refused.value.field or "").endswith(field)


def test_a_canary_of_kserve_and_its_stable_revision_become_a_route() -> None:
    migration = convert(load("kserve-canary"))
    assert specs(migration, "ModelRoute") == {
        "llama": {
            "servedNames": ["llama3"],
            "targets": [{"model": "llama-stable", "weight": 9}, {"model": "llama-canary", "weight": 1}],
        }
    }
    models = specs(migration, "ModelDeployment")
    assert models["llama-canary"]["model"] == {"uri": "hf://meta-llama/Llama-3.3-8B-Instruct"}
    assert models["llama-stable"]["pools"][0]["minReplicas"] == 4


def test_a_canary_of_kserve_alone_is_reported() -> None:
    migration = convert(load("kserve-canary")[1:])
    assert not specs(migration, "ModelRoute")
    assert [note.outcome for note in notes_of(migration, "spec.predictor.canaryTrafficPercent")] == [Outcome.DROPPED]


def test_pods_of_both_revisions_are_one_external_model() -> None:
    migration = convert(load("kserve-canary"), external=True)
    assert [manifest["metadata"]["name"] for manifest in migration.manifests] == ["llama-external"]
    assert any("pods of both revisions" in note.reason for note in migration.notes)


@given(st.lists(st.fractions(min_value=0, max_value=10**9), min_size=1, max_size=16))
def test_weights_are_whole_and_keep_their_ratios(shares: list[Fraction]) -> None:
    weights = whole_weights(shares)
    assert all(0 <= weight <= MAX_WEIGHT for weight in weights)
    assert [weight > 0 for weight in weights] == [share > 0 for share in shares]
    greatest = max(range(len(shares)), key=lambda index: shares[index])
    for weight, share in zip(weights, shares, strict=True):
        exact = share / shares[greatest] * weights[greatest] if shares[greatest] else 0
        assert abs(weight - exact) <= 1


OWN = {"model": "hosted_vllm/a/own", "api_base": "http://own:8000/v1"}
HOSTED = {"model": "groq/llama", "api_base": "https://api.groq.com/openai/v1", "api_key": "os.environ/GROQ_API_KEY"}


def litellm(router: dict[str, Any], library: dict[str, Any] | None = None, **models: Any) -> Migration:
    entries = [{"model_name": name, "litellm_params": parameters} for name, parameters in models.items()]
    return convert([{"model_list": entries, "router_settings": router, "litellm_settings": library or {}}])


def edges(migration: Migration, name: str) -> list[str]:
    spec = specs(migration, "ModelRoute")[name]
    return [f"{'+'.join(one['when'])}: {one['after']} → {one['to']}" for one in spec.get("onFailure", [])]


def test_fallbacks_of_litellm_follow_in_order_and_leave_for_an_api() -> None:
    small = {"model": "hosted_vllm/a/small", "api_base": "http://small:8000/v1"}
    router = {"fallbacks": [{"chat": ["small", "hosted", "claude", "chat"]}]}
    library = {"context_window_fallbacks": [{"chat": ["hosted"]}], "content_policy_fallbacks": [{"chat": ["hosted"]}]}
    migration = litellm(router, library, chat=OWN, small=small, hosted=HOSTED)
    assert edges(migration, "chat") == [
        "Unavailable+NoCapacity: chat-own → small",
        "Unavailable+NoCapacity: small → hosted",
        "ContextTooLong: chat-own → hosted",
    ]
    models = specs(migration, "ModelDeployment")
    endpoint = {"url": HOSTED["api_base"], "tokenSecretKeyRef": {"name": "groq-api-key", "key": "token"}}
    assert models["hosted"] == {
        "model": {"uri": "openai://llama"},
        "engine": {"type": "OpenAI"},
        "pools": [{"name": "main", "endpoints": [endpoint]}],
    }
    [note] = notes_of(migration, "router_settings.fallbacks")
    assert note.reason.startswith("claude is no fallback")
    [note] = notes_of(migration, "litellm_settings.content_policy_fallbacks")
    assert "when: [Refused]" in note.reason


def test_default_fallbacks_of_litellm_are_for_models_without_a_list() -> None:
    small = {"model": "hosted_vllm/a/small", "api_base": "http://small:8000/v1"}
    library = {"default_fallbacks": ["hosted"], "fallbacks": [{"chat": ["small"]}]}
    migration = litellm({}, library, chat=OWN, small=small, hosted=HOSTED)
    assert edges(migration, "chat") == ["Unavailable+NoCapacity: chat-own → small-small"]
    assert edges(migration, "small") == ["Unavailable+NoCapacity: small-small → hosted"]
    assert "hosted" not in specs(migration, "ModelRoute")


def test_fallbacks_of_litellm_that_cannot_be_carried_over_are_noted() -> None:
    same = {"model": "hosted_vllm/chat", "api_base": "http://own:8000/v1"}
    migration = litellm({"fallbacks": [{"chat": ["hosted"]}, {"gone": ["chat"]}]}, chat=same, hosted=HOSTED)
    assert not specs(migration, "ModelRoute")
    reasons = [note.reason for note in notes_of(migration, "router_settings.fallbacks")]
    assert reasons[0].startswith("gone is not carried over")
    assert reasons[1].startswith("the engines call the model chat too")
    small = {"model": "hosted_vllm/a/small", "api_base": "http://small:8000/v1"}
    lists = {
        "fallbacks": [{"chat": ["small", "hosted"]}],
        "context_window_fallbacks": [{"chat": ["hosted", "small"]}],
    }
    migration = litellm(lists, chat=OWN, small=small, hosted=HOSTED)
    assert edges(migration, "chat")[2:] == ["ContextTooLong: chat-own → hosted"]
    [note] = notes_of(migration, "router_settings.context_window_fallbacks")
    assert "forms a loop" in note.reason


@pytest.mark.parametrize("value", [["a"], "hosted", {"chat": ["hosted"]}])
def test_fallbacks_of_another_form_are_refused(value: Any) -> None:
    with pytest.raises(BadInput) as refused:
        litellm({"fallbacks": value}, chat=OWN, hosted=HOSTED)
    assert (refused.value.field or "").endswith("router_settings.fallbacks")


@pytest.mark.parametrize("names", ["hosted", [1], [{"model": "hosted"}]])
def test_fallback_that_is_no_name_is_noted(names: Any) -> None:
    migration = litellm({"fallbacks": [{"chat": names}]}, chat=OWN, hosted=HOSTED)
    assert not specs(migration, "ModelRoute")
    [note] = notes_of(migration, "router_settings.fallbacks")
    assert (note.outcome, note.reason) == (Outcome.DROPPED, "chat: not a list of the names of models")


def test_provider_without_https_stays_in_litellm() -> None:
    migration = litellm({}, chat=OWN, hosted=HOSTED | {"api_base": "http://api.groq.com/openai/v1"})
    [note] = notes_of(migration, "model_list[1]")
    assert "without an https:// address" in note.reason
