"""Documents about tenants, and the tenants that they define together.

A document that cannot be used changes nothing for other tenants, and its own tenant stays as it was
last. But a key whose digest is no longer in the document is revoked at once.

Why: the edit that breaks a document may be the one that removes a key, which may have leaked.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.tenants.model import Tenant

REVOKED_ENTRY: Final = "revoked"
"""The entry of a Secret or ConfigMap that is a list of revoked keys."""
_MAX_NAMED_LINES: Final = 5
_DOCUMENT_START: Final = re.compile(r"^---", re.MULTILINE)
_NAME: Final = re.compile(r"""\bmetadata["']?\s*:\s*\{?\s*["']?name["']?\s*:\s*["']?([a-z0-9][a-z0-9.-]*)""")
_SUSPENDED: Final = re.compile(r"""^[^#\n]*\bsuspended["']?\s*:\s*true\b""", re.MULTILINE)
_DIGEST: Final = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")


@dataclass(frozen=True, slots=True)
class TenantDocument:
    """One document as its source has it now.

    names: tenants that it may be about. It is exactly one if the document could be read.
    digests: all digests in it, in any place.
    tenant: None if the document cannot be used.
    problem: why it cannot; empty if it can.
    """

    names: frozenset[str]
    digests: frozenset[bytes]
    tenant: Tenant | None = None
    problem: str = ""


def digests_in(text: str) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(found) for found in _DIGEST.findall(text))


def suspended_in(text: str) -> frozenset[str]:
    """Returns the tenants that the documents of a text suspend, as far as that is plain without
    parsing them.

    Why: a tenant should stop at once, and a parser takes seconds on a busy machine.
    """
    found: set[str] = set()
    for document in _DOCUMENT_START.split(text):
        names = set(_NAME.findall(document))
        if len(names) == 1 and _SUSPENDED.search(document) is not None:
            found |= names
    return frozenset(found)


def with_keys_in(tenant: Tenant, digests: frozenset[bytes]) -> Tenant:
    """Returns the tenant with those of its keys that have one of the digests."""
    if all(key.digest in digests for key in tenant.keys):
        return tenant
    return replace(tenant, keys=tuple(key for key in tenant.keys if key.digest in digests))


def retain_keys(tenants: Mapping[str, Tenant], digests: frozenset[bytes]) -> dict[str, Tenant]:
    return {name: with_keys_in(tenant, digests) for name, tenant in tenants.items()}


def suspend(tenants: Mapping[str, Tenant], names: frozenset[str]) -> dict[str, Tenant]:
    """Returns all tenants, those with these names suspended."""
    return {
        name: replace(tenant, is_suspended=True) if name in names and not tenant.is_suspended else tenant
        for name, tenant in tenants.items()
    }


def merge_documents(
    documents: Iterable[TenantDocument], former: Mapping[str, Tenant]
) -> tuple[dict[str, Tenant], list[str]]:
    """Returns the tenants that documents of one source define, and problems.

    former: the tenants of this source until now. They stay where a document cannot be used.
    """
    tenants: dict[str, Tenant] = {}
    problems: list[str] = []
    unusable: list[TenantDocument] = []
    for document in documents:
        if document.tenant is None:
            unusable.append(document)
            problems.append(document.problem)
        elif document.tenant.name in tenants:
            problems.append(f"the tenant {document.tenant.name} is given twice; the first one counts")
        else:
            tenants[document.tenant.name] = document.tenant
    for document in unusable:
        for name in sorted(document.names & former.keys() - tenants.keys()):
            tenants[name] = with_keys_in(former[name], document.digests)
    return tenants, problems


def merge_sources(sources: Iterable[Mapping[str, Tenant]]) -> tuple[dict[str, Tenant], list[str]]:
    """Returns the tenants of several sources, and problems.

    The first source that has a tenant counts. A digest that two tenants give is of the first one.
    """
    tenants: dict[str, Tenant] = {}
    problems: list[str] = []
    owners: dict[bytes, str] = {}
    for source in sources:
        for name in sorted(source):
            if name in tenants:
                problems.append(f"the tenant {name} is given by two sources; the first one counts")
                continue
            tenant = source[name]
            repeated = [key for key in tenant.keys if key.digest in owners]
            for key in repeated:
                problems.append(f"{name}: the key {key.name} is already one of {owners[key.digest]}, and stays there")
            if repeated:
                tenant = replace(tenant, keys=tuple(key for key in tenant.keys if key.digest not in owners))
            owners.update((key.digest, name) for key in tenant.keys)
            tenants[name] = tenant
    return tenants, problems


def parse_revocations(text: str) -> tuple[frozenset[bytes], list[int]]:
    """Returns the digests of a list of revoked keys, and the numbers of lines that are none.

    Each line has one digest in hexadecimal. What follows `#` is a comment.
    """
    digests: set[bytes] = set()
    wrong: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if _DIGEST.fullmatch(entry):
            digests.add(bytes.fromhex(entry))
        else:
            wrong.append(number)
    return frozenset(digests), wrong


def describe_wrong_lines(place: str, lines: Sequence[int]) -> str | None:
    """Returns the problem of a list of revoked keys with these wrong lines; None without any."""
    if not lines:
        return None
    named = ", ".join(map(str, lines[:_MAX_NAMED_LINES])) + (", …" if len(lines) > _MAX_NAMED_LINES else "")
    return f"{place}: no digest on line {named}; the other lines count"


def add_revocations(text: str, digests: Iterable[str]) -> str:
    """Returns a list of revoked keys with those digests that it does not have yet."""
    known = {digest.hex() for digest in parse_revocations(text)[0]}
    new = [digest for digest in dict.fromkeys(one.lower() for one in digests) if digest not in known]
    return text + ("\n" if text and not text.endswith("\n") else "") + "".join(f"{digest}\n" for digest in new)
