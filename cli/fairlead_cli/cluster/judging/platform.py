"""The cluster under Fairlead: API server, rights, admission, CRDs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fairlead.api.accelerators import builtin_accelerators
from fairlead.api.crd import definition
from fairlead.api.kinds import kinds
from fairlead.api.v1alpha1 import GROUP, VERSION
from fairlead.kube.resource import Manifest, metadata_of, name_of
from fairlead_cli.cluster.catalogue import OLDEST_KUBERNETES
from fairlead_cli.cluster.facts import Facts
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import holds, key, space, spec, status
from fairlead_cli.cluster.rights import to_check, to_install
from fairlead_cli.cluster.verdict import Verdict, failed, judged, ok, unknown, warned

_SKEW_SECONDS: Final = 10.0
_DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
_SHOWN_FIELDS: Final = 4


def api_reachable(facts: Facts) -> Verdict:
    """Facts are only gathered where it is."""
    return ok(f"{facts.server}, {facts.found}")


def api_version(facts: Facts) -> Verdict:
    """``v1.36.3``, also with what vendors add: ``v1.33.5-eks-1-2``."""
    found = re.match(r"v?(\d+)\.(\d+)", facts.version)
    if found is None:
        return unknown(f"the API server calls itself {facts.version!r}")
    if (int(found[1]), int(found[2])) < OLDEST_KUBERNETES:
        return failed(f"it is {facts.version}")
    return ok(facts.version)


def clock_skew(facts: Facts) -> Verdict:
    """Exact to a second, as ``Date`` is."""
    skew = facts.skew_seconds
    if skew is None:
        return unknown("the API server's answers carry no date")
    if abs(skew) > _SKEW_SECONDS:
        return warned(f"this machine is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")
    return ok()


def rights_read(facts: Facts, *, before: bool = False) -> Verdict:
    """A warning: what cannot be read makes the checks that need it say so."""
    asked = to_check(facts.place, before=before)
    denied = [str(one) for one in asked if facts.rights.get(one) is False]
    return warned(*(f"you may not {one}" for one in denied)) if denied else ok()


def rights_install(facts: Facts) -> Verdict:
    """All that the chart creates."""
    exists = facts.place_exists is True
    found = {one: facts.rights.get(one) for one in to_install(facts.place, exists)}
    unsure = [f"{one}: {said.why}" for one, said in found.items() if isinstance(said, Missing)]
    return judged((f"you may not {one}" for one, said in found.items() if said is False), unsure)


def pod_security(facts: Facts) -> Verdict:
    """By a dry run; without the namespace nothing can be tried."""
    if facts.place_exists is not True:
        return ok(f"the namespace {facts.place} is not there yet")
    if facts.trial is None or isinstance(facts.trial, Missing):
        return unknown(facts.trial or "it was not tried")
    return failed(facts.trial) if facts.trial else ok()


def quota(facts: Facts) -> Verdict:
    """Quotas of the namespaces that matter to us, where any entry is used up."""
    if isinstance(facts.quotas, Missing):
        return unknown(facts.quotas)
    ours = {facts.place}
    for objects in (facts.models, facts.deployments):
        ours |= set() if isinstance(objects, Missing) else {space(one) for one in objects}
    return judged(
        f"{key(one)}: {what} is used up ({used} of {most})"
        for one in facts.quotas
        if space(one) in ours
        for what, used, most in _used_up(one)
    )


def _used_up(one: Manifest) -> Iterator[tuple[str, str, str]]:
    hard, used = status(one).get("hard") or {}, status(one).get("used") or {}
    for what, most in hard.items():
        have, limit = quantity(str(used.get(what, "0"))), quantity(str(most))
        if have is not None and limit is not None and have >= limit and (limit > 0 or have > 0):
            yield what, str(used[what]), str(most)


_SUFFIXES: Final[Mapping[str, float]] = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
    "Ei": 2.0**60,
}


def quantity(text: str) -> float | None:
    """A Kubernetes quantity (``500m``, ``4Gi``, ``1e3``); None for what is none."""
    found = re.fullmatch(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)([A-Za-z]*)", text)
    if found is None or found[2] not in _SUFFIXES:
        return None
    try:
        return float(found[1]) * _SUFFIXES[found[2]]
    except ValueError:
        return None


def accelerators(facts: Facts) -> Verdict:
    """Any resource that a class, built in or applied, asks nodes for."""
    if isinstance(facts.nodes, Missing):
        return unknown(facts.nodes)
    names = {str(one.spec.resource) for one in builtin_accelerators().values() if one.spec.resource}
    if not isinstance(facts.classes, Missing):
        names |= {str(spec(one)["resource"]) for one in facts.classes if spec(one).get("resource")}
    offered: dict[str, float] = {}
    for node in facts.nodes:
        for name, count in (status(node).get("allocatable") or {}).items():
            if name in names and (quantity(str(count)) or 0.0) > 0:
                offered[name] = offered.get(name, 0.0) + (quantity(str(count)) or 0.0)
    if not offered:
        return warned(f"none of {len(facts.nodes)} nodes does; only models without accelerators can run")
    return ok(", ".join(f"{count:.0f} {name}" for name, count in sorted(offered.items())))


def storage_class(facts: Facts) -> Verdict:
    """A warning without one."""
    if isinstance(facts.storage_classes, Missing):
        return unknown(facts.storage_classes)
    for one in facts.storage_classes:
        if (metadata_of(one).get("annotations") or {}).get(_DEFAULT_CLASS) == "true":
            return ok(name_of(one))
    return warned("claims that name no class stay unbound")


def leader_worker_set(facts: Facts) -> Verdict:
    """An error where a model needs them."""
    if isinstance(facts.leader_worker_sets, Missing):
        return unknown(facts.leader_worker_sets)
    if facts.leader_worker_sets:
        return ok()
    models = () if isinstance(facts.models, Missing) else facts.models
    needing = [key(one) for one in models if any(_nodes(pool) > 1 for pool in spec(one).get("pools") or [])]
    if needing:
        return failed(*(f"{one} spans nodes and cannot be run" for one in needing))
    return warned("models whose instances span nodes cannot be run")


def _nodes(pool: Mapping[str, Any]) -> int:
    return int((pool.get("parallelism") or {}).get("nodes") or 1)


# --- CRDs ---------------------------------------------------------------------------------------------------------------


def _installed(facts: Facts) -> dict[str, Manifest] | Missing:
    if isinstance(facts.definitions, Missing):
        return facts.definitions
    return {name_of(one): one for one in facts.definitions}


def crd_names(facts: Facts) -> Verdict:
    """Before an installation: CRDs of our group are either not there or ours."""
    there = _installed(facts)
    if isinstance(there, Missing):
        return unknown(there)
    ours = {f"{kind.plural}.{GROUP}": kind for kind in kinds()}
    foreign = [
        f"{name} is {(spec(there[name]).get('names') or {}).get('kind')}, not {kind.name}"
        for name, kind in ours.items()
        if name in there and (spec(there[name]).get("names") or {}).get("kind") != kind.name
    ]
    present = [name for name in ours if name in there]
    if foreign:
        return failed(*foreign)
    if present:
        return warned(f"Fairlead's CRDs are there already ({', '.join(present)}); helm leaves them as they are")
    return ok()


def crd_installed(facts: Facts) -> Verdict:
    """Each kind of this release, established and served."""
    there = _installed(facts)
    if isinstance(there, Missing):
        return unknown(there)
    bad = []
    for kind in kinds():
        name = f"{kind.plural}.{GROUP}"
        found = there.get(name)
        if found is None:
            bad.append(f"{name} is missing")
        elif not holds(found, "Established"):
            bad.append(f"{name} is not established")
        elif not any(one.get("name") == VERSION and one.get("served") for one in spec(found).get("versions") or []):
            bad.append(f"{name} does not serve {VERSION}")
    return judged(bad, note=f"{len(kinds())} of {len(kinds())}")


def crd_schema(facts: Facts) -> Verdict | None:
    """Field by field, so that what is named can be looked up."""
    there = _installed(facts)
    if isinstance(there, Missing):
        return unknown(there)
    bad: list[str] = []
    compared = 0
    for kind in kinds():
        found = there.get(f"{kind.plural}.{GROUP}")
        if found is None:
            continue
        compared += 1
        bad += _differences(name_of(found), _schema(found), _schema(definition(kind)))
    return judged(bad) if compared else None


def _schema(one: Manifest) -> Mapping[str, Any]:
    for version in spec(one).get("versions") or []:
        if version.get("name") == VERSION:
            schema: Mapping[str, Any] = (version.get("schema") or {}).get("openAPIV3Schema") or {}
            return schema
    return {}


def _differences(name: str, there: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    if there == ours:
        return []
    has, wants = set(_fields(there)), set(_fields(ours))
    lacks, more = sorted(wants - has), sorted(has - wants)
    if lacks:
        return [f"{name} is older than this release: it lacks {_listed(lacks)}"]
    if more:
        return [f"{name} is newer than this release: it has {_listed(more)}"]
    return [f"{name} has the same fields with other rules, defaults or descriptions"]


def _fields(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, below in (schema.get("properties") or {}).items():
        where = f"{path}.{name}" if path else name
        yield where
        yield from _fields(below, where)
    items = schema.get("items")
    if isinstance(items, dict):
        yield from _fields(items, f"{path}[]")


def _listed(names: list[str]) -> str:
    """Without what lies below one that is listed itself."""
    tops = [one for one in names if not any(one.startswith((f"{other}.", f"{other}[")) for other in names)]
    more = len(tops) - _SHOWN_FIELDS
    return ", ".join(tops[:_SHOWN_FIELDS]) + (f" and {more} more" if more > 0 else "")
