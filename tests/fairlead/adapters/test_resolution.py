"""Adapters at the engines of their base: the path that they load, or why they cannot."""

from typing import Any

import pytest

from fairlead.adapters.download import DOWNLOADS_FOLDER, AdapterDownload
from fairlead.adapters.resolution import MODEL_FOLDER, resolve_adapter
from fairlead.api.conditions import Reason
from fairlead.api.spec.adapter.spec import ModelAdapterSpec
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engines.containers import weights

SLOTS = {"slots": 2, "claimNames": ["loras"]}
SPLIT = [
    {"name": "p", "role": "Prefill", "acceleratorClassName": "nvidia-l4"},
    {"name": "d", "role": "Decode", "acceleratorClassName": "nvidia-l4"},
]


def base(**spec: Any) -> ModelDeploymentSpec:
    whole = {"model": {"uri": "hf://a/b"}, "pools": [{"acceleratorClassName": "nvidia-l4"}], "adapters": SLOTS, **spec}
    return ModelDeploymentSpec.model_validate(whole)


def adapter(source: str = "hf://acme/sql") -> ModelAdapterSpec:
    return ModelAdapterSpec.model_validate({"base": "tiny", "source": source})


@pytest.mark.parametrize(
    ("source", "model", "path"),
    [
        ("hf://acme/sql", "hf://a/b", "acme/sql"),
        ("file:///opt/loras/sql", "hf://a/b", "/opt/loras/sql"),
        ("pvc:loras/team/sql-2", "hf://a/b", "/var/lib/fairlead/adapters/loras/team/sql-2"),
        ("pvc:models/loras/sql", "pvc:models/base", "/var/lib/fairlead/model/loras/sql"),
    ],
)
def test_engines_get_a_path_or_a_repository(source: str, model: str, path: str) -> None:
    resolved = resolve_adapter(adapter(source), "sql", base(model={"uri": model}))
    assert (resolved.reason, resolved.source) == (Reason.LOADABLE, path)
    assert resolved.message == "gateways load it into engines of tiny on demand"


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"adapters": None}, Reason.BASE_WITHOUT_SLOTS, "tiny has no spec.adapters: its engines load no adapters"),
        ({"pools": SPLIT, "kvCache": {"transfer": "NIXL"}}, Reason.BASE_UNSUITABLE,
         "tiny has pools of the roles Prefill and Decode, whose engines serve no adapters"),
        ({"engine": {"type": "LlamaCpp", "image": "a/b"}, "adapters": None}, Reason.BASE_UNSUITABLE,
         "engines of the type LlamaCpp load no adapters at run time"),
        ({"model": {"uri": "hf://a/b", "servedNames": ["sql"]}}, Reason.BASE_UNSUITABLE,
         "the engines of tiny call the base sql: give the adapter another metadata.name"),
        ({}, Reason.CLAIM_NOT_MOUNTED,
         "the engines of tiny do not mount the claim other: add it to its spec.adapters.claimNames"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_load_it_says_why(spec: dict[str, Any], reason: Reason, message: str) -> None:
    resolved = resolve_adapter(adapter("pvc:other/sql"), "sql", base(**spec))
    assert (resolved.reason, resolved.message, resolved.source) == (reason, message, None)


def test_a_base_that_is_missing_is_named() -> None:
    resolved = resolve_adapter(adapter(), "sql", None)
    assert (resolved.reason, resolved.message) == (Reason.BASE_NOT_FOUND, "no ModelDeployment here is called tiny")


def test_the_claim_of_the_model_is_where_engines_have_it() -> None:
    assert MODEL_FOLDER == weights.MODEL_FOLDER


COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "s3://loras/acme/sql"},
        {"source": "gs://loras/acme/sql", "digest": DIGEST},
        {"source": f"oci://registry.example:5000/acme/sql:2@{DIGEST}"},
        {"source": "hf://acme/sql", "revision": COMMIT},
        {"source": "hf://acme/sql", "digest": DIGEST},
    ],
)
def test_downloads_have_a_folder_of_their_own_and_need_a_downloader(fields: dict[str, str]) -> None:
    spec = ModelAdapterSpec.model_validate({"base": "tiny", **fields})
    resolved = resolve_adapter(spec, "sql", base(adapters={"download": {}}))
    download = AdapterDownload(fields["source"], fields.get("revision", ""), fields.get("digest", ""))
    assert (resolved.reason, resolved.source, resolved.download) == (Reason.LOADABLE, download.engine_path, download)
    assert (
        resolved.message
        == "gateways load it into engines of tiny on demand; the downloader of each pod fetches it first"
    )
    without = resolve_adapter(spec, "sql", base())
    assert (without.reason, without.source, without.download) == (Reason.BASE_UNSUITABLE, None, None)
    assert "set spec.adapters.download there" in without.message
    pool = {"acceleratorClassName": "nvidia-l4", "parallelism": {"tensor": 2, "nodes": 2}}
    several = resolve_adapter(spec, "sql", base(adapters={"download": {}}, pools=[pool]))
    assert "several nodes" in several.message


def test_folder_changes_with_each_pin() -> None:
    orders = [
        AdapterDownload("hf://acme/sql"),
        AdapterDownload("hf://acme/sql", revision=COMMIT),
        AdapterDownload("hf://acme/sql", digest=DIGEST),
        AdapterDownload("hf://acme/law", revision=COMMIT),
    ]
    assert len({order.engine_path for order in orders}) == 4
    assert orders[0].engine_path.startswith(f"{DOWNLOADS_FOLDER}/")


def test_hub_adapter_without_a_pin_is_left_to_the_engine() -> None:
    resolved = resolve_adapter(adapter(), "sql", base(adapters={"download": {}}))
    assert (resolved.source, resolved.download) == ("acme/sql", None)
