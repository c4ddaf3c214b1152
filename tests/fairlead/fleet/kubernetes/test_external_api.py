"""Models of a cluster at APIs that others run, and the Secrets that gateways have for them."""

from typing import Any

import pytest

from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.kubernetes.builder import ClusterObjects, FleetResult, build_fleet
from fairlead.fleet.kubernetes.spec_cache import SpecCache
from fairlead.fleet.model import EngineAuth
from fairlead.limits import Limits
from fairlead.manifests.loader import read_object, to_fleet_model


def hosted(name: str, namespace: str, *, type: str = "OpenAI", **endpoint: Any) -> dict[str, Any]:
    uri = f"openai://gpt-{name}" if type == "OpenAI" else "hf://a/b"
    pool = {"endpoints": [{"url": "https://api.example.com/v1", **endpoint}]}
    return {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}"},
        "spec": {"model": {"uri": uri}, "engine": {"type": type}, "pools": [pool]},
    }


def build(*models: dict[str, Any]) -> FleetResult:
    items = {f"{model['metadata']['namespace']}/{model['metadata']['name']}": model for model in models}
    objects = ClusterObjects(
        models=SpecCache().models(items), endpoint_namespaces={"a", "b"}, endpoint_secrets="/secrets"
    )
    return build_fleet(objects, None, Limits())


def test_models_at_one_address_are_instances_of_their_own() -> None:
    key = {"name": "provider", "key": "token"}
    built = build(
        hosted("one", "a", tokenSecretKeyRef=key, caSecretKeyRef={"name": "ca", "key": "ca.crt"}),
        hosted("two", "a", tokenSecretKeyRef=key),
        hosted("one", "b", tokenSecretKeyRef=key),
        hosted("bare", "b"),
    )
    assert built.problems == ()
    (gpt,), (two,), (other,), (bare,) = (built.fleet.instances[key] for key in ("a/one", "a/two", "b/one", "b/bare"))
    assert (gpt.id, gpt.url, gpt.engine) == ("api.example.com/443/a/one/0", "https://api.example.com:443", "openai")
    assert (gpt.served_name, gpt.checks_address, gpt.leaves_cluster) == ("gpt-one", True, True)
    assert gpt.access == EngineAuth("/secrets/a/ca/ca.crt", None, "/secrets/a/provider/token")
    assert two.access == EngineAuth(None, None, "/secrets/a/provider/token")
    assert other.access == EngineAuth(None, None, "/secrets/b/provider/token")
    assert bare.access == EngineAuth()
    assert len({each.address for each in (gpt, two, other, bare)}) == 4
    assert all(model.leaves_cluster for model in built.fleet.models.values())


def test_engines_of_your_own_take_tokens_too_and_stay_inside() -> None:
    built = build(hosted("mine", "a", type="External", tokenSecretKeyRef={"name": "engines", "key": "key"}))
    (mine,) = built.fleet.instances["a/mine"]
    assert (mine.engine, mine.access.token_file) == ("vllm", "/secrets/a/engines/key")
    assert not mine.leaves_cluster
    assert not built.fleet.models["a/mine"].leaves_cluster


@pytest.mark.parametrize("length", [None, 1, 131_072])
@pytest.mark.parametrize("type", ["OpenAI", "External"])
def test_a_model_has_the_context_length_that_its_operator_states(type: str, length: int | None) -> None:
    document = hosted("one", "a", type=type)
    document["spec"]["model"] |= {} if length is None else {"contextLength": length}
    assert build(document).fleet.models["a/one"].context_length == length
    deployment = read_object(document)
    assert isinstance(deployment, ModelDeployment)
    assert to_fleet_model(deployment).context_length == length
