"""The gateways: are they there, have they what they need, is their fleet fresh, does Redis answer them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fairlead.kube.resource import Manifest
from fairlead_cli.cluster.asking import Readiness, Told
from fairlead_cli.cluster.facts import GATEWAY, REDIS, Facts
from fairlead_cli.cluster.judging import workloads
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import arguments, key, pod_spec, space
from fairlead_cli.cluster.times import age
from fairlead_cli.cluster.verdict import Mark, Verdict, failed, judged, ok, unknown, warned

_STALE: Final = ("the cluster cannot be followed", "no fleet has been read yet")
_REDIS: Final = ("Redis is away", "Redis refuses writes", "no Redis")
_INDEX: Final = (" in quarantine: ", " not kept up: ", " do not tell what they hold: ")
"""Within notes about the index; the models' names come before."""
_SOON_SECONDS: Final = 14 * 86_400.0


def installed(facts: Facts) -> Verdict:
    """Any at all."""
    found = facts.component(GATEWAY)
    if isinstance(found, Missing):
        return unknown(found)
    return (
        ok(", ".join(key(one) for one in found))
        if found
        else failed("no Deployment has the labels of Fairlead's gateway")
    )


def ready(facts: Facts) -> Verdict | None:
    """Their pods."""
    return workloads.pods_ready(facts, GATEWAY)


def keys(facts: Facts) -> Verdict | None:
    """All Secrets that they name; a pod that starts needs each."""
    return workloads.secrets_complete(facts, GATEWAY)


def rights(facts: Facts) -> Verdict | None:
    """Of those that follow the cluster."""
    return workloads.rights_whole(facts, GATEWAY)


def fleet(facts: Facts) -> Verdict | None:
    """By their own notes: they say since when they have heard nothing."""
    return _by_notes(facts, _STALE, Mark.FAILED)


def index(facts: Facts) -> Verdict | None:
    """By their own notes."""
    return _warned_of(facts, _of_index)


def notes(facts: Facts) -> Verdict | None:
    """Whatever else they say."""
    return _warned_of(facts, lambda note: not note.startswith((*_STALE, *_REDIS, "draining")) and not _of_index(note))


@workloads.each(GATEWAY)
def redis(facts: Facts, found: Sequence[Manifest]) -> Verdict | None:
    """As each gateway has it; a gateway that was given none decides alone."""
    without = [one for one in found if not workloads.has_redis(one)]
    alone = [f"{key(one)} has several gateways and no Redis" for one in without if workloads.replicas(one) > 1]
    if len(without) == len(found):
        return warned(*alone) if alone else None
    bad = _by_notes(facts, _REDIS[:2], Mark.FAILED)
    if bad is None or bad.mark is not Mark.OK:
        return bad if bad is None or bad.mark is not Mark.FAILED else failed(*bad.lines, *_own_redis(facts))
    pages = [one.metrics for one in facts.told.get(GATEWAY, ()) if not isinstance(one.metrics, Missing)]
    away = [page for page in pages if page.value("fairlead_gateway_redis_connected") == 0.0]
    if away:
        return failed(f"{len(away)} of {len(pages)} gateways are not connected")
    return warned(*alone) if alone else ok()


def _own_redis(facts: Facts) -> Iterator[str]:
    """What keeps the chart's own Redis from being ready."""
    found = facts.component(REDIS)
    for one in () if isinstance(found, Missing) else found:
        if not workloads.ready_pods(facts, one):
            yield from workloads.why_not(facts, one)


@workloads.each(GATEWAY)
def certificate(facts: Facts, found: Sequence[Manifest]) -> Verdict | None:
    """Of gateways that speak TLS themselves."""
    bad, soon, unsure, shown = [], [], [], []
    for one in found:
        for volume in pod_spec(one).get("volumes") or []:
            name = str((volume.get("secret") or {}).get("secretName", ""))
            if volume.get("name") != "tls" or not name:
                continue
            there = facts.secrets.get((space(one), name))
            if there is None or isinstance(there, Missing) or there.ends is None:
                unsure.append(f"{name}: {there.why if isinstance(there, Missing) else 'its tls.crt cannot be read'}")
            elif there.ends <= facts.now:
                bad.append(f"that of {name} ran out {age(there.ends, facts.now)} ago")
            elif there.ends - facts.now < _SOON_SECONDS:
                soon.append(f"that of {name} runs out in {age(facts.now, there.ends)}")
            else:
                shown.append(f"{name}: {age(facts.now, there.ends)}")
    if bad or unsure:
        return judged(bad, unsure)
    return warned(*soon) if soon else ok(", ".join(shown)) if shown else None


@workloads.each(GATEWAY)
def keys_asked(_: Facts, found: Sequence[Manifest]) -> Verdict:
    """A warning for those that ask nobody."""
    return judged(
        (f"{key(one)} asks nobody for a key" for one in found if "--insecure" in arguments(one)), mark=Mark.WARNING
    )


def _of_index(note: str) -> bool:
    return any(words in note for words in _INDEX)


def _warned_of(facts: Facts, wanted: Callable[[str], bool]) -> Verdict | None:
    """A warning with those notes; nothing where no gateway can have any."""
    told = facts.told.get(GATEWAY, ())
    if not told or workloads.none_ready(facts, GATEWAY):
        return None
    return judged(_notes(told, wanted), _unreached(told), mark=Mark.WARNING)


def _notes(told: Sequence[Told], wanted: Callable[[str], bool]) -> list[str]:
    """Those notes of the gateways that were reached, each with its pod."""
    return [
        f"{one.pod}: {note}"
        for one in told
        if isinstance(one.readiness, Readiness)
        for note in one.readiness.notes
        if wanted(note)
    ]


def _by_notes(facts: Facts, beginnings: tuple[str, ...], mark: Mark) -> Verdict | None:
    told, there = facts.told.get(GATEWAY, ()), facts.component(GATEWAY)
    if isinstance(there, Missing):
        return unknown(there)
    if not there:
        return None
    if not told:
        return unknown("no pod of the gateway was found")
    if workloads.none_ready(facts, GATEWAY) and all(isinstance(one.readiness, Missing) for one in told):
        return unknown("no pod of the gateway is ready")
    found = _notes(told, lambda note: note.startswith(beginnings))
    return judged(found, _unreached(told), mark=mark)


def _unreached(told: Sequence[Told]) -> list[str]:
    """Why some were not reached; the same reason once."""
    return list(dict.fromkeys(one.readiness.why for one in told if isinstance(one.readiness, Missing)))
