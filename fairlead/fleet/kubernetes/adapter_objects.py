"""The ModelAdapters of a cluster, as LoRA adapters of their bases."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from fairlead.adapters.download import AdapterDownload
from fairlead.adapters.model import LoraAdapter
from fairlead.adapters.resolution import resolve_adapter
from fairlead.api.spec.adapter.spec import ModelAdapterSpec
from fairlead.api.v1alpha1 import ModelAdapter
from fairlead.fleet.client_names import GrantedNames
from fairlead.fleet.kubernetes.claimant_objects import ClaimantCache, ParsedClaimant
from fairlead.fleet.kubernetes.spec_cache import ParsedModel
from fairlead.fleet.model import Model
from fairlead.kube.resources import Manifest
from fairlead.manifests.loader import read_object

ParsedAdapter: TypeAlias = ParsedClaimant[ModelAdapterSpec]


def adapter_cache() -> ClaimantCache[ModelAdapterSpec]:
    """Returns an empty cache of parsed adapters."""
    return ClaimantCache("adapter", _read)


def granted_adapters(
    adapters: Iterable[ParsedAdapter],
    bases: Mapping[str, ParsedModel],
    granted: Mapping[str, GrantedNames],
    previous: Mapping[str, Model],
) -> dict[str, tuple[LoraAdapter, ...]]:
    """Returns the adapters that engines can load, by the key of their base, sorted by name.

    bases: the models by key.
    granted: names by the keys of claims.
    previous: the models until now. An adapter stays as it was while its spec cannot be read, and so
        do all adapters of a base whose spec cannot.
    """
    before = {
        f"{model.namespace}/{adapter.name}": (key, adapter)
        for key, model in previous.items()
        for adapter in model.adapters
    }
    of_bases: dict[str, list[LoraAdapter]] = {}
    for one in adapters:
        name = one.claim.name
        place = before.get(one.key)
        if one.value is not None:
            key = f"{one.key.partition('/')[0]}/{one.value.base}"
            base = bases.get(key)
            if base is None or base.spec is not None:
                found = resolve_adapter(one.value, name, None if base is None else base.spec)
                place = (
                    None
                    if found.source is None
                    else (key, _lora_adapter(one.value, name, found.source, found.download))
                )
        if place is not None:
            names = granted[one.claim.key].all_names(name)
            of_bases.setdefault(place[0], []).append(replace(place[1], client_names=names))
    return {key: tuple(sorted(group, key=lambda adapter: adapter.name)) for key, group in of_bases.items()}


def _lora_adapter(spec: ModelAdapterSpec, name: str, source: str, download: AdapterDownload | None) -> LoraAdapter:
    return LoraAdapter(name, source, replicas=spec.replicas or 0, download=download)


def _read(item: Manifest) -> ModelAdapterSpec:
    parsed = read_object(item)
    assert isinstance(parsed, ModelAdapter)
    return parsed.spec
