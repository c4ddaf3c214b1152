"""The content of a tenants file: YAML documents of kind ModelTenant.

Each document is read by itself, so that a broken one changes nothing for the tenants of others.
Objects of other kinds are left out.
"""

import re
from collections.abc import Iterator
from typing import Final

from fairlead.api.v1alpha1 import ModelTenant
from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.loader import parse_manifests
from fairlead.tenants.documents import TenantDocument, digests_in

_SEPARATOR: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_NAME: Final = re.compile(r"""\bname["']?\s*:\s*["']?([a-z0-9][-a-z0-9.]{0,252})""")


def parse_tenant_file(text: str, *, file: str, limits: Limits) -> list[TenantDocument]:
    """Returns the documents of a tenants file. Raises ManifestError for too many tenants."""
    documents = [document for part, line in _split(text) for document in _parse_part(part, line, file, limits)]
    if len(documents) > limits.tenants:
        message = f"{len(documents):,} tenants; the limit is {limits.tenants:,}"
        raise ManifestError((FileProblem(file, 1, "(file)", message, "remove those not in use"),))
    return documents


def _split(text: str) -> Iterator[tuple[str, int]]:
    """Yields each document that is not blank, and the number of lines before it."""
    start, line = 0, 0
    ends = [match.start() for match in _SEPARATOR.finditer(text)]
    for end in [*ends, len(text)]:
        part = text[start:end]
        if part.removeprefix("---").strip():
            yield part, line
        line += part.count("\n")
        start = end


def _parse_part(part: str, line: int, file: str, limits: Limits) -> Iterator[TenantDocument]:
    digests = digests_in(part)
    try:
        found = parse_manifests(part, file=file, limits=limits)
    except ManifestError as error:
        problem = error.problems[0]
        if problem.message == "the file is empty":  # comments only
            return
        message = str(FileProblem(file, problem.line + line, problem.field, problem.message, problem.fix))
        yield TenantDocument(frozenset(_NAME.findall(part)), digests, problem=message)
        return
    for document in found:
        if isinstance(document.value, ModelTenant):
            tenant = document.value.to_tenant()
            yield TenantDocument(frozenset({tenant.name}), digests, tenant)
