"""The ModelTenants of a cluster.

A change is written only if the object is the one that was read. Otherwise it is read
and changed again, so that two administrators never lose each other's keys.

It counts above ModelTenants. So a key stops although its ModelTenant cannot be written, and stays
stopped if a repository brings the ModelTenant back as it was.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Conflict, Forbidden, NotFound
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, CLI_FIELD_MANAGER
from fairlead.kube.resources import CONFIG_MAPS, MODEL_TENANTS, Manifest, metadata_of, name_of
from fairlead.tenants.documents import REVOKED_ENTRY, add_revocations
from fairlead_cli.cluster.access.connection import connect, local_user
from fairlead_cli.cluster.installation import Installation
from fairlead_cli.cluster.object_fields import MissingValue, value_or_missing
from fairlead_cli.tenants.store import PEPPER_VARIABLE, Entry, KeyEdit, keys_of, unknown_tenant

_ATTEMPTS: Final = 10
_T = TypeVar("_T")


class ClusterTenantStore:
    """The ModelTenants of the cluster in which an installation is."""

    place = "the cluster"

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def pepper(self) -> str:
        """Returns the pepper of the gateways, or that of the environment.

        Raises BadInput without the right to read its Secret, and if gateways require no key.
        """
        pepper = os.environ.get(PEPPER_VARIABLE) or self._installation.key_pepper()
        if not pepper:
            raise BadInput(
                f"the gateways in {self._installation.namespace} have no {PEPPER_VARIABLE}, and require no API key",
                hint="set auth.enabled in the chart's values",
            )
        return pepper

    def tenants(self) -> Sequence[Manifest]:
        return self._run(_list)

    def tenant(self, name: str) -> Manifest:
        """Returns one ModelTenant. Raises BadInput if there is none of this name."""
        return self._run(lambda api: _get(api, name))

    def edit_keys(self, name: str, edit: KeyEdit) -> None:
        self._run(lambda api: edit_keys(api, name, edit))

    def add_revoked(self, entries: Sequence[Entry]) -> str | None:
        """Adds the digests to the ConfigMap that the gateways watch.

        Returns None if they watch none. Raises KubeError if it cannot be written.
        """
        name, namespace = self._installation.revocation_list(), self._installation.namespace
        if name is None:
            return None
        digests = [str(entry["digest"]) for entry in entries]
        self._run(lambda api: add_to_revocation_list(api, namespace, name, digests))
        return f"the ConfigMap {namespace}/{name}"

    def _run(self, request: Callable[[KubeApi], Awaitable[_T]]) -> _T:
        async def run() -> _T:
            async with connect(self._installation.access) as (api, _):
                return await request(api)

        return asyncio.run(run())


async def edit_keys(api: KubeApi, name: str, edit: KeyEdit) -> None:
    """Changes the keys of a tenant. Raises Conflict after ten changes by others meanwhile."""
    for attempt in range(_ATTEMPTS):
        tenant = await _get(api, name)
        patch = {
            "metadata": {
                "resourceVersion": metadata_of(tenant)["resourceVersion"],
                "annotations": {CHANGED_BY_ANNOTATION: local_user()},
            },
            "spec": {"keys": edit(keys_of(tenant))},
        }
        try:
            await api.patch_merge(MODEL_TENANTS, None, name, patch, CLI_FIELD_MANAGER)
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
        except Forbidden as error:
            missing = await value_or_missing(_raise(error))
            raise _forbidden(f"the ModelTenant {name} cannot be changed", missing, "patch") from None
        else:
            return


async def _get(api: KubeApi, name: str) -> Manifest:
    try:
        return await api.get(MODEL_TENANTS, None, name)
    except NotFound:
        names = [name_of(tenant) for tenant in await _list(api)]
        raise unknown_tenant(name, names, ClusterTenantStore.place) from None
    except Forbidden as error:
        missing = await value_or_missing(_raise(error))
        raise _forbidden(f"the ModelTenant {name} cannot be read", missing, "get") from None


async def _list(api: KubeApi) -> Sequence[Manifest]:
    found = await value_or_missing(api.list(MODEL_TENANTS))
    if not isinstance(found, MissingValue):
        return sorted(found.items, key=name_of)
    if found.is_forbidden:
        raise _forbidden("the ModelTenants cannot be listed", found, "list")
    hint = "install the CRDs of this release; `fairlead check` says what is missing"
    raise BadInput(f"the ModelTenants cannot be listed: {found.reason}", hint=hint)


async def _raise(error: Exception) -> object:
    raise error


def _forbidden(what: str, missing: object, verb: str) -> BadInput:
    reason = missing.reason if isinstance(missing, MissingValue) else str(missing)
    right = f"{verb} {MODEL_TENANTS.plural}.{MODEL_TENANTS.group}"
    hint = f"ask for the right to `{right}` in the whole cluster: no role of the chart has it"
    return BadInput(f"{what}: {reason}", hint=hint)


async def add_to_revocation_list(api: KubeApi, namespace: str, name: str, digests: Sequence[str]) -> None:
    """Adds digests to a ConfigMap, which is created if there is none.

    Raises KubeError, such as Conflict after ten changes by others meanwhile.
    """
    for attempt in range(_ATTEMPTS):
        try:
            await _try_to_add(api, namespace, name, digests)
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


async def _try_to_add(api: KubeApi, namespace: str, name: str, digests: Sequence[str]) -> None:
    annotations = {CHANGED_BY_ANNOTATION: local_user()}
    metadata = {"name": name, "namespace": namespace, "annotations": annotations}
    try:
        found = await api.get(CONFIG_MAPS, namespace, name)
    except NotFound:
        data = {REVOKED_ENTRY: add_revocations("", digests)}
        await api.create(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}, CLI_FIELD_MANAGER
        )
        return
    text = str((found.get("data") or {}).get(REVOKED_ENTRY) or "")
    patch = {
        "metadata": {"resourceVersion": metadata_of(found)["resourceVersion"], "annotations": annotations},
        "data": {REVOKED_ENTRY: add_revocations(text, digests)},
    }
    await api.patch_merge(CONFIG_MAPS, namespace, name, patch, CLI_FIELD_MANAGER)
