"""Decides whether the engines of a model can load an adapter, and under which path. Pure.

The operator writes it into the status of a ModelAdapter, and gateways load by it. Both decide
alike.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.adapters.download import AdapterDownload
from fairlead.api.conditions import Reason
from fairlead.api.spec.adapter.spec import ModelAdapterSpec
from fairlead.api.spec.pools import PoolRole
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engines.lora_api import has_lora_api

MODEL_FOLDER: Final = "/var/lib/fairlead/model"
"""The folder in which engines have the claim of their model."""
ADAPTERS_FOLDER: Final = "/var/lib/fairlead/adapters"
"""The folder in which engines have the claims of adapters, each in a folder of its name."""


@dataclass(frozen=True, slots=True)
class AdapterResolution:
    """The decision on an adapter and the engines of its base.

    source: as the engines know it; None if they cannot load it.
    message: why, for people.
    download: what the downloader of the engine's pod fetches first; None without one.
    """

    reason: Reason
    message: str
    source: str | None = None
    download: AdapterDownload | None = None


def resolve_adapter(adapter: ModelAdapterSpec, name: str, base: ModelDeploymentSpec | None) -> AdapterResolution:
    """Returns what the engines of an adapter's base make of it.

    name: of the adapter.
    base: None if there is no such model.
    """
    model = adapter.base
    if base is None:
        return AdapterResolution(Reason.BASE_NOT_FOUND, f"no ModelDeployment here is called {model}")
    refusal = _base_refusal(model, base)
    if refusal:
        return AdapterResolution(Reason.BASE_UNSUITABLE, refusal)
    if base.adapters is None:
        message = f"{model} has no spec.adapters: its engines load no adapters"
        return AdapterResolution(Reason.BASE_WITHOUT_SLOTS, message)
    if name in (base.model.engine_name, model):
        message = f"the engines of {model} call the base {name}: give the adapter another metadata.name"
        return AdapterResolution(Reason.BASE_UNSUITABLE, message)
    download = adapter.download
    if download is not None:
        refusal = _download_refusal(model, base)
        if refusal:
            return AdapterResolution(Reason.BASE_UNSUITABLE, refusal)
    source = _engine_source(adapter, base) if download is None else download.engine_path
    if source is None:
        claim = adapter.location.partition("/")[0]
        message = f"the engines of {model} do not mount the claim {claim}: add it to its spec.adapters.claimNames"
        return AdapterResolution(Reason.CLAIM_NOT_MOUNTED, message)
    message = f"gateways load it into engines of {model} on demand"
    if adapter.replicas is not None:
        message = f"gateways keep it loaded in engines of {model}: {adapter.replicas}, if there are so many with a slot"
    if download is not None:
        message = f"{message}; the downloader of each pod fetches it first"
    return AdapterResolution(Reason.LOADABLE, message, source, download)


def _base_refusal(model: str, base: ModelDeploymentSpec) -> str:
    """Returns why no engine of the base can load adapters; empty if that depends on slots."""
    if base.has_role(PoolRole.PREFILL):
        return f"{model} has pools of the roles Prefill and Decode, whose engines serve no adapters"
    if not has_lora_api(base.engine.type.label):
        return f"engines of the type {base.engine.type} load no adapters at run time"
    return ""


def _download_refusal(model: str, base: ModelDeploymentSpec) -> str:
    """Returns why not every pod of the base downloads adapters; empty if all do."""
    if base.adapters is None or base.adapters.download is None:
        return f"no downloader is in the pods of {model}: set spec.adapters.download there, such as download: {{size: 20Gi}}"
    if any(pool.parallelism.nodes > 1 for pool in base.pools):
        return f"{model} has instances of several nodes, which have no downloader: copy the adapter to a claim"
    return ""


def _engine_source(adapter: ModelAdapterSpec, base: ModelDeploymentSpec) -> str | None:
    """Returns the path or repository for engines of the base; None if its claim is not mounted."""
    if adapter.scheme != "pvc":
        return adapter.location
    claim, _, path = adapter.location.partition("/")
    if base.adapters is not None and claim in base.adapters.claim_names:
        return f"{ADAPTERS_FOLDER}/{claim}/{path}"
    if base.model.scheme == "pvc" and base.model.location.partition("/")[0] == claim:
        return f"{MODEL_FOLDER}/{path}"
    return None
