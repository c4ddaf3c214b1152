"""Records of a namespace's objects: changes as a watch reports them, and the state without fields
that differ by nature."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Unreachable
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    MODEL_DEPLOYMENTS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Manifest,
    ObjectSelection,
    Resource,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead.kube.watch_events import WatchEventType
from fairlead.runtime.tasks import cancel_and_wait

CHILDREN = (DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS, DISRUPTION_BUDGETS, CONTROLLER_REVISIONS)
KINDS = (*CHILDREN, MODEL_DEPLOYMENTS)
OWN_LABEL = "app.kubernetes.io/managed-by=fairlead"


class WatchRecorder:
    """Recorder of changes. ``lines`` are those since it was last cleared: ``MODIFIED Deployment
    qwen-main``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def record(self, api: KubeApi, kind: Resource, namespace: str) -> None:
        """Records changes from now on until cancelled."""
        version = (await api.list(kind, namespace)).resource_version
        while True:
            try:
                async for change in api.watch(ObjectSelection(kind, namespace), resource_version=version):
                    version = str(metadata_of(change.object).get("resourceVersion") or version)
                    if change.type is not WatchEventType.BOOKMARK:
                        self.lines.append(f"{change.type} {kind.kind} {name_of(change.object)}")
            except Unreachable:
                await asyncio.sleep(0.2)


@asynccontextmanager
async def record_changes(api: KubeApi, namespace: str) -> AsyncIterator[WatchRecorder]:
    """Records all writes in ``namespace`` during the block."""
    tape = WatchRecorder()
    tasks = [asyncio.ensure_future(tape.record(api, kind, namespace)) for kind in KINDS]
    try:
        yield tape
    finally:
        for task in tasks:
            await cancel_and_wait(task)


async def own_objects(api: KubeApi, namespace: str) -> list[Manifest]:
    """Returns all children in ``namespace``."""
    return [one for kind in CHILDREN for one in (await api.list(kind, namespace, OWN_LABEL)).items]


async def identities(api: KubeApi, namespace: str) -> dict[str, str]:
    """Returns the uid of every child, by kind and name."""
    return {f"{one['kind']} {name_of(one)}": uid_of(one) for one in await own_objects(api, namespace)}


async def owners(api: KubeApi, namespace: str) -> dict[str, Any]:
    """Returns version and managers of each of the operator's objects and of the models."""
    found = [*await own_objects(api, namespace), *(await api.list(MODEL_DEPLOYMENTS, namespace)).items]
    return {
        f"{one['kind']} {name_of(one)}": (
            metadata_of(one)["resourceVersion"],
            [
                {key: value for key, value in entry.items() if key != "time"}
                for entry in metadata_of(one)["managedFields"]
            ],
        )
        for one in found
    }


async def state(api: KubeApi, namespace: str) -> list[Any]:
    """Returns the state of all objects, equal for two namespaces with equal histories."""
    found: list[tuple[Any, ...]] = []
    for one in await own_objects(api, namespace):
        labels, notes = metadata_of(one).get("labels"), dict(metadata_of(one).get("annotations") or {})
        notes.pop("fairlead.io/applied", None)  # of the whole manifest, with the owner's uid
        spec = {key: value for key, value in (one.get("spec") or {}).items() if not key.startswith("clusterIP")}
        found.append((one["kind"], name_of(one), labels, notes, spec, one.get("data"), one.get("revision")))
    for one in (await api.list(MODEL_DEPLOYMENTS, namespace)).items:
        status = one.get("status") or {}
        conditions = [(each["type"], each["status"], each["reason"]) for each in status.get("conditions") or []]
        found.append((one["kind"], name_of(one), status.get("ready"), sorted(conditions)))
    return sorted(found, key=lambda one: one[:2])
