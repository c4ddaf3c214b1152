"""The cluster under Fairlead: API server, rights, admission, CRDs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP, VERSION
from fairlead.kube.resources import Manifest, metadata_of, name_of
from fairlead_cli.cluster.access.permissions import permissions_to_check, permissions_to_install
from fairlead_cli.cluster.checks.check import OLDEST_KUBERNETES
from fairlead_cli.cluster.checks.verdict import Verdict, failed, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import is_condition_true, namespace_name, object_key, spec_of, status_of

_MAX_SKEW_SECONDS: Final = 10.0
_DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
_MAX_SHOWN_FIELDS: Final = 4


def check_api_reachable(facts: ClusterFacts) -> Verdict:
    """Facts are only gathered where it is."""
    return passed(f"{facts.server}, {facts.found}")


def check_api_version(facts: ClusterFacts) -> Verdict:
    """``v1.36.3``, also with what vendors add: ``v1.33.5-eks-1-2``."""
    found = re.match(r"v?(\d+)\.(\d+)", facts.version)
    if found is None:
        return unknown(f"the API server calls itself {facts.version!r}")
    if (int(found[1]), int(found[2])) < OLDEST_KUBERNETES:
        return failed(f"it is {facts.version}")
    return passed(facts.version)


def check_clock_skew(facts: ClusterFacts) -> Verdict:
    """Exact to a second, as ``Date`` is."""
    skew = facts.skew_seconds
    if skew is None:
        return unknown("the API server's answers carry no date")
    if abs(skew) > _MAX_SKEW_SECONDS:
        return warned(f"this machine is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")
    return passed()


def check_read_permissions(facts: ClusterFacts, *, before_install: bool = False) -> Verdict:
    """A warning: what cannot be read makes the checks that need it say so."""
    asked = permissions_to_check(facts.place, before_install=before_install)
    denied = [str(one) for one in asked if facts.rights.get(one) is False]
    return warned(*(f"you may not {one}" for one in denied)) if denied else passed()


def check_install_permissions(facts: ClusterFacts) -> Verdict:
    """All that the chart creates."""
    exists = facts.place_exists is True
    found = {one: facts.rights.get(one) for one in permissions_to_install(facts.place, exists)}
    unsure = [f"{one}: {said.reason}" for one, said in found.items() if isinstance(said, MissingValue)]
    return verdict_of((f"you may not {one}" for one, said in found.items() if said is False), unsure)


def check_pod_security(facts: ClusterFacts) -> Verdict:
    """By a dry run; without the namespace nothing can be tried."""
    if facts.place_exists is not True:
        return passed(f"the namespace {facts.place} is not there yet")
    if facts.trial is None or isinstance(facts.trial, MissingValue):
        return unknown(facts.trial or "it was not tried")
    return failed(facts.trial) if facts.trial else passed()


def check_quotas(facts: ClusterFacts) -> Verdict:
    """Quotas of the namespaces that matter to us, where any entry is used up."""
    if isinstance(facts.quotas, MissingValue):
        return unknown(facts.quotas)
    ours = {facts.place}
    for objects in (facts.models, facts.deployments):
        ours |= set() if isinstance(objects, MissingValue) else {namespace_name(one) for one in objects}
    return verdict_of(
        f"{object_key(one)}: {what} is used up ({used} of {most})"
        for one in facts.quotas
        if namespace_name(one) in ours
        for what, used, most in _used_up(one)
    )


def _used_up(one: Manifest) -> Iterator[tuple[str, str, str]]:
    hard, used = status_of(one).get("hard") or {}, status_of(one).get("used") or {}
    for what, most in hard.items():
        have, limit = parse_quantity(str(used.get(what, "0"))), parse_quantity(str(most))
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


def parse_quantity(text: str) -> float | None:
    """A Kubernetes quantity (``500m``, ``4Gi``, ``1e3``); None for what is none."""
    found = re.fullmatch(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)([A-Za-z]*)", text)
    if found is None or found[2] not in _SUFFIXES:
        return None
    try:
        return float(found[1]) * _SUFFIXES[found[2]]
    except ValueError:
        return None


def check_accelerators(facts: ClusterFacts) -> Verdict:
    """Any resource that a class, built in or applied, asks nodes for."""
    if isinstance(facts.nodes, MissingValue):
        return unknown(facts.nodes)
    names = {str(one.spec.resource) for one in builtin_accelerators().values() if one.spec.resource}
    if not isinstance(facts.classes, MissingValue):
        names |= {str(spec_of(one)["resource"]) for one in facts.classes if spec_of(one).get("resource")}
    offered: dict[str, float] = {}
    for node in facts.nodes:
        for name, count in (status_of(node).get("allocatable") or {}).items():
            if name in names and (parse_quantity(str(count)) or 0.0) > 0:
                offered[name] = offered.get(name, 0.0) + (parse_quantity(str(count)) or 0.0)
    if not offered:
        return warned(f"none of {len(facts.nodes)} nodes does; only models without accelerators can run")
    return passed(", ".join(f"{count:.0f} {name}" for name, count in sorted(offered.items())))


def check_storage_class(facts: ClusterFacts) -> Verdict:
    """A warning without one."""
    if isinstance(facts.storage_classes, MissingValue):
        return unknown(facts.storage_classes)
    for one in facts.storage_classes:
        if (metadata_of(one).get("annotations") or {}).get(_DEFAULT_CLASS) == "true":
            return passed(name_of(one))
    return warned("claims that name no class stay unbound")


def check_leader_worker_sets(facts: ClusterFacts) -> Verdict:
    """An error where a model needs them."""
    if isinstance(facts.leader_worker_sets, MissingValue):
        return unknown(facts.leader_worker_sets)
    if facts.leader_worker_sets:
        return passed()
    models = () if isinstance(facts.models, MissingValue) else facts.models
    needing = [object_key(one) for one in models if any(_nodes(pool) > 1 for pool in spec_of(one).get("pools") or [])]
    if needing:
        return failed(*(f"{one} spans nodes and cannot be run" for one in needing))
    return warned("models whose instances span nodes cannot be run")


def _nodes(pool: Mapping[str, Any]) -> int:
    return int((pool.get("parallelism") or {}).get("nodes") or 1)


# --- CRDs ---------------------------------------------------------------------------------------------------------------


def _installed(facts: ClusterFacts) -> dict[str, Manifest] | MissingValue:
    if isinstance(facts.definitions, MissingValue):
        return facts.definitions
    return {name_of(one): one for one in facts.definitions}


def check_crd_names(facts: ClusterFacts) -> Verdict:
    """Before an installation: CRDs of our group are either not there or ours."""
    there = _installed(facts)
    if isinstance(there, MissingValue):
        return unknown(there)
    ours = {f"{kind.plural}.{GROUP}": kind for kind in served_kinds()}
    foreign = [
        f"{name} is {(spec_of(there[name]).get('names') or {}).get('kind')}, not {kind.name}"
        for name, kind in ours.items()
        if name in there and (spec_of(there[name]).get("names") or {}).get("kind") != kind.name
    ]
    present = [name for name in ours if name in there]
    if foreign:
        return failed(*foreign)
    if present:
        return warned(f"Fairlead's CRDs are there already ({', '.join(present)}); helm leaves them as they are")
    return passed()


def check_crds_installed(facts: ClusterFacts) -> Verdict:
    """Each kind of this release, established and served."""
    there = _installed(facts)
    if isinstance(there, MissingValue):
        return unknown(there)
    bad = []
    for kind in served_kinds():
        name = f"{kind.plural}.{GROUP}"
        found = there.get(name)
        if found is None:
            bad.append(f"{name} is missing")
        elif not is_condition_true(found, "Established"):
            bad.append(f"{name} is not established")
        elif not any(one.get("name") == VERSION and one.get("served") for one in spec_of(found).get("versions") or []):
            bad.append(f"{name} does not serve {VERSION}")
    return verdict_of(bad, note=f"{len(served_kinds())} of {len(served_kinds())}")


def check_crd_schemas(facts: ClusterFacts) -> Verdict | None:
    """Field by field, so that what is named can be looked up."""
    there = _installed(facts)
    if isinstance(there, MissingValue):
        return unknown(there)
    bad: list[str] = []
    compared = 0
    for kind in served_kinds():
        found = there.get(f"{kind.plural}.{GROUP}")
        if found is None:
            continue
        compared += 1
        bad += _differences(name_of(found), _schema(found), _schema(crd_manifest(kind)))
    return verdict_of(bad) if compared else None


def _schema(one: Manifest) -> Mapping[str, Any]:
    for version in spec_of(one).get("versions") or []:
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
    more = len(tops) - _MAX_SHOWN_FIELDS
    return ", ".join(tops[:_MAX_SHOWN_FIELDS]) + (f" and {more} more" if more > 0 else "")
