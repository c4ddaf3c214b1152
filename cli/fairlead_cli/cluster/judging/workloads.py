"""What our components have in common: Deployments with pods, Secrets that these take, rights of their accounts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps

from fairlead.kube.resource import Manifest, leaving, name_of, says_ready
from fairlead_cli.cluster.facts import Facts, Wanted
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import (
    arguments,
    conditions,
    containers,
    environment,
    key,
    pod_spec,
    short,
    space,
    spec,
    waits_for,
)
from fairlead_cli.cluster.reviews import Right
from fairlead_cli.cluster.verdict import Judge, Mark, Verdict, judged, ok, unknown, warned

WATCHED = "FAIRLEAD_WATCH_NAMESPACES"
_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")


def each(
    component: str, *, ready: bool = False
) -> Callable[[Callable[[Facts, Sequence[Manifest]], Verdict | None]], Judge]:
    """A judge of a component's Deployments: not known where they could not be read, silent where there are none.

    ``ready``: nor is it known while none of their pods is ready, since it is their pods that are asked.
    """

    def made(judge: Callable[[Facts, Sequence[Manifest]], Verdict | None]) -> Judge:
        @wraps(judge)
        def whole(facts: Facts) -> Verdict | None:
            found = facts.component(component)
            if isinstance(found, Missing):
                return unknown(found)
            if not found:
                return None
            if ready and none_ready(facts, component):
                return unknown(f"no pod of the {component} is ready")
            return judge(facts, found)

        return whole

    return made


def ready_pods(facts: Facts, deployment: Manifest) -> Sequence[Manifest] | Missing:
    """Those of a Deployment that take work."""
    pods = facts.pods_of(deployment)
    return pods if isinstance(pods, Missing) else [one for one in pods if says_ready(one) and not leaving(one)]


def none_ready(facts: Facts, component: str) -> bool:
    """Is it known that no pod of the component is ready? What asks them cannot tell anything then."""
    found = facts.component(component)
    if isinstance(found, Missing) or isinstance(facts.pods, Missing):
        return False
    return not any(ready_pods(facts, one) for one in found)


def pods_ready(facts: Facts, component: str) -> Verdict | None:
    """FAILED for a Deployment without any ready pod, a warning where some are missing."""
    return each(component)(_pods_ready)(facts)


def _pods_ready(facts: Facts, found: Sequence[Manifest]) -> Verdict:
    bad: list[str] = []
    short_of: list[str] = []
    count = wanted = 0
    for one in found:
        ready = ready_pods(facts, one)
        if isinstance(ready, Missing):
            return unknown(ready)
        asked = replicas(one)
        count, wanted = count + len(ready), wanted + asked
        if len(ready) < max(1, asked):
            (short_of if ready else bad).extend([f"{key(one)}: {len(ready)} of {asked} ready", *why_not(facts, one)])
    if bad:
        return Verdict(Mark.FAILED, tuple(bad))
    return warned(*short_of) if short_of else ok(f"{count} of {wanted}")


def replicas(deployment: Manifest) -> int:
    """As asked; one where nobody says."""
    asked = spec(deployment).get("replicas")
    return 1 if asked is None else int(asked)


def why_not(facts: Facts, deployment: Manifest) -> Iterator[str]:
    """What its pods wait for; what its controller says where there are none."""
    pods = facts.pods_of(deployment)
    if not isinstance(pods, Missing):
        for one in pods:
            if why := waits_for(one):
                yield f"pod {name_of(one)}: {why}"
    if replicas(deployment) == 0:
        yield f"{name_of(deployment)} is scaled to 0"
    elif not pods:
        yield f"no pod of {name_of(deployment)} has been made"
    for said in conditions(deployment):
        if said.get("type") == "ReplicaFailure" and said.get("status") == "True":
            yield short(str(said.get("message", "")))


def unpullable(facts: Facts) -> Verdict | None:
    """Images of the control plane's own pods."""
    if isinstance(facts.pods, Missing):
        return unknown(facts.pods)
    if not facts.pods:
        return None
    return judged(
        f"pod {key(one)}: {why}"
        for one in facts.pods
        if (why := waits_for(one)).partition(":")[0].partition(" ")[0] in _PULLING
    )


def watched(deployment: Manifest) -> list[str]:
    """The namespaces whose models it looks after; none named: all."""
    named = environment(deployment).get(WATCHED, "")
    if not named:
        argument = next((word for word in arguments(deployment) if word.startswith("--kube=")), "")
        named = argument.removeprefix("--kube=")
    return [part.strip() for part in named.split(",") if part.strip()]


def wanted_secrets(deployment: Manifest) -> list[Wanted]:
    """Every Secret that its pods name, with the entries that they take from it; pull secrets aside."""
    pods = pod_spec(deployment)
    entries: dict[tuple[str, bool], set[str]] = {}
    for container in containers(pods):
        for one in container.get("env") or []:
            chosen = (one.get("valueFrom") or {}).get("secretKeyRef")
            if chosen and chosen.get("name"):
                where = (str(chosen["name"]), bool(chosen.get("optional")))
                entries.setdefault(where, set()).add(str(chosen.get("key", "")))
    for volume in pods.get("volumes") or []:
        chosen = volume.get("secret")
        if chosen and chosen.get("secretName"):
            where = (str(chosen["secretName"]), bool(chosen.get("optional")))
            entries.setdefault(where, set()).update(str(one.get("key", "")) for one in chosen.get("items") or [])
    return [Wanted(space(deployment), name, frozenset(found), optional) for (name, optional), found in entries.items()]


def secrets_complete(facts: Facts, component: str) -> Verdict | None:
    """Every Secret that the component's pods name is there, with the entries that they take."""
    return each(component)(_secrets_complete)(facts)


def _secrets_complete(facts: Facts, found: Sequence[Manifest]) -> Verdict:
    bad: list[str] = []
    unsure: list[str] = []
    for wanted in dict.fromkeys(one for deployment in found for one in wanted_secrets(deployment) if not one.optional):
        name, there = f"{wanted.namespace}/{wanted.name}", facts.secrets.get((wanted.namespace, wanted.name))
        if isinstance(there, Missing) and there.absent:
            bad.append(f"the Secret {name} does not exist; it should hold {', '.join(sorted(wanted.entries))}")
        elif there is None or isinstance(there, Missing):
            unsure.append(f"{name}: {there.why if there else 'it was not looked at'}")
        elif lacks := sorted(wanted.entries - there.entries):
            bad.append(f"the Secret {name} has no {', '.join(lacks)}")
    return judged(bad, unsure)


def has_redis(deployment: Manifest) -> bool:
    """Are its pods told where Redis is?"""
    return any(
        one.get("name") == "FAIRLEAD_REDIS_URL"
        for container in containers(pod_spec(deployment))
        for one in container.get("env") or []
    )


def account(deployment: Manifest) -> str:
    """The service account of its pods."""
    return str(pod_spec(deployment).get("serviceAccountName") or "default")


def rights_whole(facts: Facts, component: str) -> Verdict | None:
    """Every right of the component's chart, as the API server decides about its account."""
    asked = {where: found for (name, where), found in facts.account_rights.items() if name == component}
    if not asked:
        return None
    bad = [f"{component} of {where} may not {right}" for where, found in asked.items() for right in denied(found)]
    unsure = [said.why for found in asked.values() for said in found.values() if isinstance(said, Missing)]
    return judged(bad, unsure, note=f"{sum(map(len, asked.values()))} rights")


def denied(found: Mapping[Right, bool | Missing]) -> list[str]:
    """Those that are not there, verbs of one resource together."""
    grouped: dict[Right, list[str]] = {}
    for right, said in found.items():
        if said is False:
            grouped.setdefault(Right(right.group, right.resource, "", right.namespace, right.name), []).append(
                right.verb
            )
    return [
        str(Right(one.group, one.resource, ", ".join(verbs), one.namespace, one.name)) for one, verbs in grouped.items()
    ]
