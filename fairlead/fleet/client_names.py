"""The names under which clients reach models, and which model owns a name that several claim.

`namespace/name` always works. Every other name has one owner, found by the first rule that applies:

1. the model that an administrator assigned it to;
2. the model whose status records that it has the name;
3. the remembered owner, even if it is deleted, unless it released the name;
4. the oldest model with this name of its own;
5. the oldest model with this served name.

A route or a LoRA adapter claims names like a model: its own, and those that it serves.

A deleted owner keeps its names while a process remembers it: a model that waits for a name does not
inherit it. A model whose status records that it did not get its own name gets it by no age, either.
An owner releases its names by the annotation `fairlead.io/release-names`, or a served name by
leaving it out. Then the rules 4 and 5 decide among the others.

A served name is refused if it begins with a namespace of models, routes or adapters, because it
could shadow a `namespace/name`. Namespaces of remembered owners count, too.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from fairlead.errors import SettingsError
from fairlead.names import DNS_LABEL_PATTERN, DNS_SUBDOMAIN_PATTERN, SERVED_NAME_PATTERN

ClaimKind: TypeAlias = Literal["model", "route", "adapter"]
"""The kind of object that claims a name. It begins the keys of claims, except those of models."""
MODEL_CLAIM: Final = "model"
_ADAPTER_PREFIX: Final = "adapter:"
MAX_NAMES_OF_DELETED_MODELS = 256
"""Names of deleted models that are remembered, per namespace. Beyond it, the oldest is released."""


@dataclass(frozen=True, slots=True)
class NameClaim:
    """The names that one model claims.

    recorded: the names that its status says it has; None if the status says nothing yet.
    is_releasing: the model gives its names to others that claim them.
    """

    namespace: str
    name: str
    served_names: tuple[str, ...] = ()
    recorded: frozenset[str] | None = None
    is_releasing: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def has_claim(self, name: str) -> bool:
        """Returns True if the model claims `name`."""
        return name == self.name or name in self.served_names


def claim_key(kind: ClaimKind, key: str) -> str:
    return key if kind == MODEL_CLAIM else f"{kind}:{key}"


def object_claim(
    kind: ClaimKind,
    namespace: str,
    name: str,
    served_names: tuple[str, ...] = (),
    recorded: frozenset[str] | None = None,
    *,
    is_releasing: bool = False,
) -> NameClaim:
    return NameClaim(claim_key(kind, namespace), name, served_names, recorded, is_releasing)


def adapter_key(claim_key: str) -> str | None:
    """Returns `namespace/name` of the adapter whose claim has this key; None for other claims."""
    return claim_key.removeprefix(_ADAPTER_PREFIX) if claim_key.startswith(_ADAPTER_PREFIX) else None


def is_model_claim(claim_key: str) -> bool:
    return ":" not in claim_key


def object_key(claim_key: str) -> str:
    return claim_key.rpartition(":")[2]


def describe_owner(claim_key: str) -> str:
    kind = claim_key.rpartition(":")[0]
    return f"the {kind} {object_key(claim_key)}" if kind else claim_key


@dataclass(frozen=True, slots=True)
class NameHistory:
    """The owners so far, besides the claims.

    assigned: owners that an administrator set, by name.
    remembered: the owners at the last decision, by name; longest remembered first.
    """

    assigned: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RefusedName:
    """A name that a model does not get.

    owner: the key of the model that has it; None if the name begins with a namespace.
    is_owner_gone: the owner is deleted, or never existed.
    """

    name: str
    owner: str | None
    is_owner_gone: bool = False


@dataclass(frozen=True, slots=True)
class GrantedNames:
    """The names that a model gets besides its key.

    has_own_name: the model gets the name in its metadata.
    """

    has_own_name: bool
    served_names: tuple[str, ...]
    refused: tuple[RefusedName, ...] = ()

    def all_names(self, name: str) -> tuple[str, ...]:
        return (*((name,) if self.has_own_name else ()), *self.served_names)


def name_owners(claims: Iterable[NameClaim], namespaces: Container[str], history: NameHistory) -> dict[str, str]:
    """Returns the owner (`namespace/name`) of each name; longest remembered names first.

    claims: all claims of the names in question, the oldest model first.
    namespaces: the namespaces that have models, routes or adapters, or had those of `remembered`.
    """
    oldest_first = list(claims)
    claims_by_key = {claim.key: claim for claim in oldest_first}
    owners = dict(history.assigned)
    for claim in oldest_first:
        for name in sorted(claim.recorded or ()):
            remembered = history.remembered.get(name, claim.key)
            if claim.has_claim(name) and not claim.is_releasing and remembered in claims_by_key:
                owners.setdefault(name, claim.key)
    for name, key in history.remembered.items():
        owner = claims_by_key.get(key)
        if owner is None or (owner.has_claim(name) and not owner.is_releasing):
            owners.setdefault(name, key)
    _grant_by_age(oldest_first, owners, namespaces)
    order = [*(name for name in history.remembered if name in owners), *owners]
    return names_to_remember({name: owners[name] for name in order}, claims_by_key)


def names_to_remember(owners: dict[str, str], live: Container[str]) -> dict[str, str]:
    """Returns the owners without the oldest names of deleted models beyond the limit.

    live: the keys of models that exist.
    """
    counts: Counter[str] = Counter()
    forgotten = set()
    for name in reversed(owners):
        if owners[name] not in live:
            namespace = owners[name].partition("/")[0]
            counts[namespace] += 1
            if counts[namespace] > MAX_NAMES_OF_DELETED_MODELS:
                forgotten.add(name)
    return {name: key for name, key in owners.items() if name not in forgotten}


def grant_names(
    claims: Iterable[NameClaim], namespaces: Container[str], owners: Mapping[str, str] | None = None
) -> dict[str, GrantedNames]:
    """Returns the names of each model by its key.

    claims: the oldest model first.
    owners: from `name_owners`; None: the claims alone decide.
    """
    listed = list(claims)
    found = name_owners(listed, namespaces, NameHistory()) if owners is None else owners
    keys = {claim.key for claim in listed}
    return {claim.key: granted_names(claim, found, keys, namespaces) for claim in listed}


def granted_names(
    claim: NameClaim, owners: Mapping[str, str], live: Container[str], namespaces: Container[str]
) -> GrantedNames:
    """Returns the names of one model.

    owners: the owner of each name that it claims, from `name_owners`.
    live: the keys of owners that exist.
    """
    extra = [name for name in claim.served_names if name not in (claim.name, claim.key)]
    served = tuple(
        name for name in extra if owners.get(name) == claim.key and not _begins_with_namespace(name, namespaces)
    )
    refused = []
    for name in (claim.name, *extra):
        owner = None if name != claim.name and _begins_with_namespace(name, namespaces) else owners.get(name)
        if owner != claim.key:
            refused.append(RefusedName(name, owner, owner is not None and owner not in live))
    return GrantedNames(owners.get(claim.name) == claim.key, served, tuple(refused))


def recorded_names(status: Mapping[str, Any]) -> frozenset[str] | None:
    """Returns the names that the status of a model says it has; None if it says nothing yet."""
    name, served = status.get("clientName"), status.get("servedNames")
    if not name:
        return None
    return frozenset({str(name), *(map(str, served) if isinstance(served, list) else ())})


def parse_client_names(text: str) -> dict[str, str]:
    """Returns `NAME=NAMESPACE/MODEL,...` as owners by name. Raises SettingsError."""
    owners: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, key = part.partition("=")
        namespace, _, model = key.partition("/")
        if not (
            SERVED_NAME_PATTERN.fullmatch(name)
            and DNS_LABEL_PATTERN.fullmatch(namespace)
            and DNS_SUBDOMAIN_PATTERN.fullmatch(model)
        ):
            raise SettingsError(
                f"FAIRLEAD_CLIENT_NAMES: {part!r} does not assign a name to a model",
                field="FAIRLEAD_CLIENT_NAMES",
                hint="write it like llama=team-a/llama, several with commas between them",
            )
        owners[name] = key
    return owners


def _grant_by_age(oldest_first: Sequence[NameClaim], owners: dict[str, str], namespaces: Container[str]) -> None:
    """Gives names without an owner to the oldest claimant; a releasing one comes last."""
    releasing_last = sorted(oldest_first, key=lambda claim: claim.is_releasing)
    released = {name for claim in oldest_first if claim.is_releasing for name in (claim.name, *claim.served_names)}
    for claim in releasing_last:
        is_refused = claim.recorded is not None and claim.name not in claim.recorded
        if not is_refused or claim.name in released:
            owners.setdefault(claim.name, claim.key)
    for claim in releasing_last:
        for name in claim.served_names:
            if not _begins_with_namespace(name, namespaces):
                owners.setdefault(name, claim.key)


def _begins_with_namespace(name: str, namespaces: Container[str]) -> bool:
    first, slash, _ = name.partition("/")
    return bool(slash) and first in namespaces
