"""The names under which clients reach models, and which model gets a name that several claim.

`namespace/name` always works. A model's own name goes to the oldest model that has it, and no
served name takes it. A served name goes to the oldest model that claims it. A served name that
begins with a namespace that has models is refused, because it could shadow a `namespace/name`.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NameClaim:
    """The names that one model claims."""

    namespace: str
    name: str
    served_names: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RefusedName:
    """A name that a model does not get.

    owner: the key of the model that gets it; None if the name begins with a namespace.
    """

    name: str
    owner: str | None


@dataclass(frozen=True, slots=True)
class GrantedNames:
    """The names that a model gets besides its key.

    has_own_name: the model gets the name in its metadata.
    """

    has_own_name: bool
    served_names: tuple[str, ...]
    refused: tuple[RefusedName, ...] = ()


def grant_names(claims: Iterable[NameClaim], namespaces: Container[str]) -> dict[str, GrantedNames]:
    """Returns the names of each model by its key.

    claims: the oldest model first.
    namespaces: the namespaces that have models.
    """
    listed = list(claims)
    owners: dict[str, str] = {}
    for claim in listed:
        owners.setdefault(claim.name, claim.key)
    for claim in listed:
        for name in claim.served_names:
            if not _begins_with_namespace(name, namespaces):
                owners.setdefault(name, claim.key)
    return {claim.key: _granted(claim, owners) for claim in listed}


def _granted(claim: NameClaim, owners: dict[str, str]) -> GrantedNames:
    extra = [name for name in claim.served_names if name not in (claim.name, claim.key)]
    refused = [RefusedName(name, owners.get(name)) for name in (claim.name, *extra) if owners.get(name) != claim.key]
    served = tuple(name for name in extra if owners.get(name) == claim.key)
    return GrantedNames(owners[claim.name] == claim.key, served, tuple(refused))


def _begins_with_namespace(name: str, namespaces: Container[str]) -> bool:
    first, slash, _ = name.partition("/")
    return bool(slash) and first in namespaces
