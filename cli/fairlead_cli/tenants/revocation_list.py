"""The revocation list of a cluster: a ConfigMap that all gateways of an installation watch.

It counts above ModelTenants. So a key stops although its ModelTenant cannot be written, and stays
stopped if a repository brings the ModelTenant back as it was.
"""

from collections.abc import Sequence
from typing import Final

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Conflict, NotFound
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, CLI_FIELD_MANAGER
from fairlead.kube.resources import CONFIG_MAPS, metadata_of
from fairlead.tenants.documents import REVOKED_ENTRY, add_revocations
from fairlead_cli.cluster.access.connection import local_user

_ATTEMPTS: Final = 10


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
