"""ModelAdapters of a conversion: LoRA adapters of models that are converted, too."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.adapters.download import DOWNLOAD_PATTERNS
from fairlead.names import shorten_name
from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, NamedDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome

COPY: Final = "copy it to a claim, list that in adapters.claimNames of the model, and write a ModelAdapter"
_HUB: Final = re.compile(r"(?:hf|huggingface)://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
_STORE: Final = re.compile("|".join(DOWNLOAD_PATTERNS[scheme] for scheme in ("s3", "gs", "oci")))
_FILE: Final = re.compile(r"(?:/[\w.-]+)+")
_NO_DISAGGREGATION: Final = "models with Prefill and Decode pools serve no adapters"
_EXTERNAL: Final = "the external model serves no adapters: Fairlead loads them into engines that it runs"


@dataclass(slots=True)
class AdapterDraft(NamedDraft):
    """An adapter: its name, its base as a ModelDeployment, and the location of its weights."""

    base: str
    source: str
    replicas: int | None = None


def assemble_adapter(draft: AdapterDraft) -> dict[str, Any]:
    """Returns the ModelAdapter."""
    name = shorten_name(assembly.dns_label(draft.name))
    served_names = [served for served in draft.served_names if served != name]
    more = assembly.without_empty({"servedNames": served_names, "replicas": draft.replicas})
    return assembly.build_manifest("ModelAdapter", name, draft, {"base": draft.base, "source": draft.source, **more})


def read_adapters(
    entries: Sequence[FieldReader],
    url: str,
    draft: ModelDraft,
    options: MigrationOptions,
    *,
    served: str = "{}",
    slots: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Returns the ModelAdapters of a model, whose names begin with that of the model.

    url: the field with the location. served: the adapter's name for clients, with its own name.
    slots: `spec.adapters` of the model, where the other system states it.
    """
    found = [(entry, entry.text("name"), entry.text(url)) for entry in entries]
    if not can_have_adapters(draft, draft.reader, external=options.external):
        return []
    pool, base = draft.pools[0], assembly.manifest_name(draft.name, options)
    pool.engine.flags.adapters = slots or slots_of(pool)
    return [
        assemble_adapter(
            AdapterDraft(
                base,
                source,
                name=f"{draft.name}-{name}",
                namespace=draft.namespace,
                served_names=[served.format(name)],
            )
        )
        for entry, name, location in found
        if (source := adapter_source(location, entry, url, pool))
    ]


def can_have_adapters(base: ModelDraft, reader: FieldReader, *, external: bool) -> bool:
    """Returns whether a model can serve adapters; notes why if not."""
    if external:
        reader.note("", _EXTERNAL)
        return False
    if any(pool.role == "Prefill" for pool in base.pools):
        reader.note("", _NO_DISAGGREGATION, Outcome.LEFT_OUT)
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
        reader.note(field_name, f"engines load no adapter from {url}: {COPY}", Outcome.LEFT_OUT)
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
