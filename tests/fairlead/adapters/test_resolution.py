"""Adapters at the engines of their base: the path that they load, or why they cannot."""

from typing import Any

import pytest

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
    found = resolve_adapter(adapter(source), "sql", base(model={"uri": model}))
    assert (found.reason, found.source) == (Reason.LOADABLE, path)
    assert found.message == "gateways load it into engines of tiny on demand"


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
    found = resolve_adapter(adapter("pvc:other/sql"), "sql", base(**spec))
    assert (found.reason, found.message, found.source) == (reason, message, None)


def test_a_base_that_is_missing_is_named() -> None:
    found = resolve_adapter(adapter(), "sql", None)
    assert (found.reason, found.message) == (Reason.BASE_NOT_FOUND, "no ModelDeployment here is called tiny")


def test_the_claim_of_the_model_is_where_engines_have_it() -> None:
    assert MODEL_FOLDER == weights.MODEL_FOLDER
