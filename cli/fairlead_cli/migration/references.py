"""Names in a pod that must hold in Fairlead's pod, too: labels, caches of weights, volumes.

A pod refers to labels, folders and volumes of the system that it comes from. Each reference is
rewritten to what Fairlead's pod has, or a note names it. `fairlead_cli.rendered_pods` finds those
that still lead nowhere.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fairlead.engines.containers.additions import DOWNLOADER_NAME
from fairlead.engines.containers.weights import CACHE_FOLDER
from fairlead.fleet.labels import MODEL_LABEL, POOL_LABEL
from fairlead.manifests.pod_rules import selects
from fairlead_cli.migration.drafts import PoolDraft
from fairlead_cli.migration.field_reader import FieldReader

OWN_VOLUMES: Final = frozenset(
    ("adapter-credentials", "adapter-downloads", "cache", "home", "lmcache", "model", "shared-memory", "tmp")
)
"""Names of the volumes in Fairlead's own pods."""
_OWN_CONTAINERS: Final = ("engine", DOWNLOADER_NAME)
_HOME: Final = "/root"
"""The home of the user that engines run as by themselves; no other user may enter it."""
_MAX_FOLDER_CHARACTERS: Final = 4_096
_HUB_VARIABLES: Final = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
_CACHE_VARIABLES: Final = ("HF_HOME", "XDG_CACHE_HOME", *_HUB_VARIABLES)
CACHE_HUB: Final = f"{CACHE_FOLDER}/huggingface/hub"
"""The folder of downloads in Fairlead's pods."""


def hub_folder(variables: Mapping[str, str]) -> str:
    """Returns the folder to which Hugging Face's library downloads, by a container's variables.

    Source: huggingface_hub, `constants.py`.
    """
    home = variables.get("HOME") or _HOME
    cache = variables.get("XDG_CACHE_HOME") or f"{home}/.cache"
    found = next((value for name in _HUB_VARIABLES if (value := variables.get(name))), "")
    folder = found or f"{variables.get('HF_HOME') or f'{cache}/huggingface'}/hub"
    return posixpath.normpath(folder.replace("~", home, 1) if folder.startswith("~") else folder)


def move_cache(pool: PoolDraft) -> dict[str, str]:
    """Returns `model.cache` for a claim at the usual place of downloads; empty without one.

    Other volumes there are mounted at Fairlead's place instead.

    Why only below the home folder: elsewhere the variables are carried over with the volume.
    """
    variables: dict[str, str] = {}
    for one in pool.engine.env:
        value = str(one.get("value") or "")
        if len(value) <= _MAX_FOLDER_CHARACTERS:
            value = re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), value)
        variables[one["name"]] = value[:_MAX_FOLDER_CHARACTERS]
    hub = hub_folder(variables)
    mounts = pool.container.get("volumeMounts") or []
    holding = [one for one in mounts if f"{hub}/".startswith(f"{str(one.get('mountPath')).rstrip('/')}/")]
    if not hub.startswith(f"{_HOME}/") or not holding:
        return {}
    mount = max(holding, key=lambda one: len(str(one["mountPath"])))
    volumes = pool.pod.get("volumes") or []
    volume: dict[str, Any] = next((one for one in volumes if one.get("name") == mount.get("name")), {})
    inside = posixpath.relpath(hub, str(mount["mountPath"]))
    claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
    shared = [one for one in all_mounts(pool) if one is not mount and one.get("name") == mount.get("name")]
    place = f"the volume at {mount['mountPath']}"
    pool.engine.env = [one for one in pool.engine.env if one["name"] not in _CACHE_VARIABLES]
    if claim and not shared:
        folder = posixpath.normpath(f"{CACHE_FOLDER}/{str(mount.get('subPath') or '').strip('/')}/{inside}")
        mounts.remove(mount)
        volumes.remove(volume)
        pool.reader.note(
            "", f"{place} is model.cache, so that weights are downloaded once; user 65532 must write there"
        )
    else:
        folder = posixpath.normpath(f"{CACHE_FOLDER}/{inside}")
        mount["mountPath"] = CACHE_FOLDER
        pool.reader.note("", f"{place} is at {CACHE_FOLDER}, since {_HOME} is root's; user 65532 must write there")
    if folder != CACHE_HUB:
        pool.engine.env.append({"name": "HF_HUB_CACHE", "value": folder})
    for holder, name in ((pool.container, "volumeMounts"), (pool.pod, "volumes")):
        if not holder.get(name, True):
            del holder[name]
    return {"claimName": str(claim)} if claim and not shared else {}


def rename_taken(pool: PoolDraft, reader: FieldReader) -> None:
    """Renames volumes, their mounts and containers that have a name of one of Fairlead's own."""
    volumes = [*(pool.pod.get("volumes") or ()), *all_mounts(pool)]
    containers = [one for kind in ("containers", "initContainers") for one in pool.pod.get(kind, ())]
    for noun, named, taken in (("volume", volumes, OWN_VOLUMES), ("container", containers, _OWN_CONTAINERS)):
        used = {one.get("name") for one in named}
        for one in named:
            if (name := one.get("name")) in taken:
                new_name = f"old-{name}"
                while new_name in used:
                    new_name = f"old-{new_name}"
                reader.note("", f"the {noun} {name} is called {new_name}: Fairlead's pods have one of that name")
                one["name"] = new_name


def all_mounts(pool: PoolDraft) -> Iterator[dict[str, Any]]:
    """Yields the mounts of all containers of a pool's pods."""
    containers = [pool.container, *(one for kind in ("containers", "initContainers") for one in pool.pod.get(kind, ()))]
    for container in containers:
        for kind in ("volumeMounts", "volumeDevices"):
            yield from container.get(kind) or ()


def rewrite_selectors(pool: PoolDraft, model: str) -> None:
    """Lets label selectors of a pool find Fairlead's pods, if they found the old ones."""
    own = {MODEL_LABEL: model, POOL_LABEL: pool.name}
    labels = own | pool.metadata.get("labels", {})
    for field, selector in _selectors(pool.pod):
        if selects(selector, labels):
            continue
        if not selects(selector, pool.selector | pool.labels):
            names = ", ".join(f"{name}={value}" for name, value in (selector.get("matchLabels") or {}).items())
            reason = f"it selects other pods ({names or 'by matchExpressions'}): pods of Fairlead have the labels "
            pool.reader.note("", f"{field}: {reason}{MODEL_LABEL} and {POOL_LABEL}")
            continue
        kept = {name: value for name, value in (selector.get("matchLabels") or {}).items() if name in labels}
        rules = [one for one in selector.get("matchExpressions") or () if selects({"matchExpressions": [one]}, labels)]
        selector.clear()
        selector |= {"matchLabels": own | kept} | ({"matchExpressions": rules} if rules else {})
        pool.reader.note("", f"{field}: it selects the pods of this pool by {MODEL_LABEL} and {POOL_LABEL}")


def _selectors(pod: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields of a pod that select pods, with their selectors."""
    affinity = pod.get("affinity") or {}
    for name in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(name) or {}
        terms = list(rules.get("requiredDuringSchedulingIgnoredDuringExecution") or ())
        terms += [
            one.get("podAffinityTerm") for one in rules.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        ]
        yield from ((f"affinity.{name}", one["labelSelector"]) for one in terms if one and one.get("labelSelector"))
    for constraint in pod.get("topologySpreadConstraints") or ():
        if constraint.get("labelSelector"):
            yield "topologySpreadConstraints", constraint["labelSelector"]
