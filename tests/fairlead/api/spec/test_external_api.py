"""Models at an OpenAI-compatible API that others run: fields and rules of their manifests."""

from typing import Any

import pytest

from fairlead.api.spec.tenant.spec import ModelTenantSpec
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.errors import BadInput, ManifestError
from fairlead.fleet.engine_url import endpoint_id, normalize_endpoint_url
from fairlead.manifests.loader import read_object

TOKEN = {"name": "provider", "key": "token"}


def manifest(*, uri: str = "openai://gpt-4o-mini", type: str = "OpenAI", **pool: Any) -> dict[str, Any]:
    endpoint = {"url": "https://api.example.com/v1", "tokenSecretKeyRef": TOKEN}
    spec = {"model": {"uri": uri}, "engine": {"type": type}, "pools": [{"endpoints": [endpoint], **pool}]}
    metadata = {"name": "hosted", "namespace": "chat"}
    return {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": spec}


def parse(document: dict[str, Any]) -> ModelDeployment:
    deployment = read_object(document)
    assert isinstance(deployment, ModelDeployment)
    return deployment


def test_api_of_a_provider_is_a_model() -> None:
    spec = parse(manifest()).spec
    (endpoint,) = spec.pools[0].endpoints
    assert endpoint.url == "https://api.example.com:443"
    assert (spec.is_external, spec.has_opaque_engine, spec.model.engine_name) == (True, True, "gpt-4o-mini")
    assert spec.engine.to_request_policy().engines == {"openai"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (manifest(uri="hf://a/b"), "an openai:// uri and an engine of type OpenAI need each other"),
        (manifest(type="External"), "an openai:// uri and an engine of type OpenAI need each other"),
        (
            manifest(endpoints=[], selector={"matchLabels": {"app": "a"}}),
            "an API that others run has addresses, and the role Serve",
        ),
        (
            manifest(endpoints=[{"url": "http://api.example.com", "tokenSecretKeyRef": TOKEN}]),
            "a token leaves the cluster over TLS only",
        ),
        (manifest(endpoints=[]), "a pool of an external engine needs the location of its engines"),
        (manifest(uri="openai://two words"), "does not end with the name of a model"),
        (
            manifest(endpoints=[{"url": "https://a.example", "tokenSecretKeyRef": {"name": "p", "key": "../x"}}]),
            "tokenSecretKeyRef.key",
        ),
        (
            manifest(endpoints=[{"url": "https://a.example", "tokenSecretKeyRef": {"name": "..", "key": "x"}}]),
            "tokenSecretKeyRef.name",
        ),
    ],
)
def test_other_manifests_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises((BadInput, ManifestError), match=message.replace("(", r"\(")):
        parse(document)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.example.com", "https://api.example.com:443"),
        ("https://api.example.com/v1", "https://api.example.com:443"),
        ("https://api.example.com/v1/", "https://api.example.com:443"),
        ("https://api.example.com/openai/v1", "https://api.example.com:443/openai"),
        ("https://api.example.com:8443/a/b-c.d/", "https://api.example.com:8443/a/b-c.d"),
        ("http://[::1]:80/v1", "http://[::1]:80"),
    ],
)
def test_path_before_v1_belongs_to_the_url(text: str, url: str) -> None:
    assert normalize_endpoint_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "https://api.example.com/../v1",
        "https://api.example.com/a b",
        "https://api.example.com/a?b",
        "https://api.example.com/a#b",
        "https://api.example.com//a",
        "https://user@api.example.com/v1",
        "ftp://api.example.com/v1",
        "https:///v1",
    ],
)
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="not an en"):
        normalize_endpoint_url(text)


def test_ids_tell_models_at_one_address_apart() -> None:
    assert endpoint_id("https://a.example:443", "chat/one") == "a.example/443/chat/one/0"
    assert endpoint_id("https://a.example:443/x/y", "chat/two") == "a.example/443/x/y/chat/two/0"
    assert endpoint_id("http://10.0.0.1:80", rank=3) == "10.0.0.1/80/3"


def test_tenant_may_leave_the_cluster_unless_it_says_otherwise() -> None:
    assert ModelTenantSpec.model_validate({}).to_tenant("a").may_leave_cluster
    assert not ModelTenantSpec.model_validate({"externalEndpoints": "Refuse"}).to_tenant("a").may_leave_cluster
