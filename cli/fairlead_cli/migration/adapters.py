"""ModelAdapters of a conversion: LoRA adapters of models that are converted, too."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.adapters.download import DOWNLOAD_PATTERNS
from fairlead.api.v1alpha1 import API_VERSION
from fairlead.names import shorten_name
from fairlead_cli.migration.draft import ModelDraft, PoolDraft, dns_label
from fairlead_cli.migration.field_reader import FieldReader, Outcome

COPY: Final = "copy it to a claim, list that in adapters.claimNames of the model, and write a ModelAdapter"
_HUB: Final = re.compile(r"(?:hf|huggingface)://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
_STORE: Final = re.compile("|".join(DOWNLOAD_PATTERNS[scheme] for scheme in ("s3", "gs", "oci")))
_FILE: Final = re.compile(r"(?:/[\w.-]+)+")
_NO_DISAGGREGATION: Final = "models with Prefill and Decode pools serve no adapters"
_EXTERNAL: Final = "the external model serves no adapters: Fairlead loads them into engines that it runs"


@dataclass(slots=True)
class AdapterDraft:
    """An adapter: its name, its base as a ModelDeployment, and the location of its weights."""

    name: str
    base: str
    source: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    served_names: list[str] = field(default_factory=list)
    replicas: int | None = None


def assemble_adapter(draft: AdapterDraft) -> dict[str, Any]:
    """Returns the ModelAdapter."""
    name = shorten_name(dns_label(draft.name))
    metadata: dict[str, Any] = {"name": name}
    fields = {"namespace": draft.namespace, "labels": dict(draft.labels), "annotations": dict(draft.annotations)}
    metadata |= {key: value for key, value in fields.items() if value}
    spec: dict[str, Any] = {"base": draft.base, "source": draft.source}
    served_names = [served for served in draft.served_names if served != name]
    if served_names:
        spec["servedNames"] = served_names
    if draft.replicas is not None:
        spec["replicas"] = draft.replicas
    return {"apiVersion": API_VERSION, "kind": "ModelAdapter", "metadata": metadata, "spec": spec}


def can_have_adapters(base: ModelDraft, reader: FieldReader, *, external: bool) -> bool:
    """Returns whether a model can serve adapters; notes why if not."""
    if external:
        reader.note("", _EXTERNAL)
        return False
    if any(pool.role == "Prefill" for pool in base.pools):
        reader.note("", _NO_DISAGGREGATION, Outcome.DROPPED)
        return False
    return True


def adapter_source(url: str, reader: FieldReader, field_name: str, pool: PoolDraft) -> str:
    """Returns the location of an adapter's weights as Fairlead writes it.

    Empty, with a note, if engines cannot load it from there. Adds its claim to the slots.

    pool: of the base, whose engines load it.
    """
    if hub := _HUB.fullmatch(url):
        return f"hf://{hub[1]}"
    if _STORE.fullmatch(url.rstrip("/")):
        slots_of(pool).setdefault("download", {})
        reader.note(field_name, "a downloader in each pod fetches it: name a Secret in adapters.download.credentials")
        return url.rstrip("/")
    if url.startswith("pvc:"):
        claim, _, folder = url.removeprefix("pvc:").strip("/").partition("/")
        return _on_claim(claim, folder, pool)
    path = url.removeprefix("file://").rstrip("/")
    if not _FILE.fullmatch(path):
        reader.note(field_name, f"engines load no adapter from {url}: {COPY}", Outcome.DROPPED)
        return ""
    places = [place for place in pool.mounted_claims if path.startswith(f"{place}/")]
    if not places:
        return f"file://{path}"
    place = max(places, key=len)
    claim, _, folder = pool.mounted_claims[place].partition("/")
    return _on_claim(claim, "/".join(part for part in (folder, path[len(place) + 1 :]) if part), pool)


def _on_claim(claim: str, folder: str, pool: PoolDraft) -> str:
    """Returns the location of weights on a claim, which the base's slots get."""
    names = slots_of(pool).setdefault("claimNames", [])
    if claim not in names:
        names.append(claim)
    return f"pvc:{claim}/{folder}".removesuffix("/")


def slots_of(pool: PoolDraft) -> dict[str, Any]:
    """Returns `spec.adapters` of the pool's model, which it gets if it has none."""
    flags = pool.engine.flags
    if flags.adapters is None:
        flags.adapters = {}
    return flags.adapters
