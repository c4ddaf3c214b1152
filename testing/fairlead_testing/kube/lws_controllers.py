"""Models of the LeaderWorkerSet (0.8.0) and StatefulSet controllers, over groups by index.

They follow `rollingUpdateParameters`: the effect of `maxSurge`, `maxUnavailable`, `partition` and a
changing replica count. Slow steps (draining, becoming ready) are up to the test.

The kind LeaderWorkerSet for API servers of tests, and its objects.
"""

from dataclasses import dataclass, field
from typing import Any

from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest, labels_of, name_of
from fairlead_testing.kube.api_server import binaries_folder
from fairlead_testing.yaml_documents import load_document

_PLAIN_CRD: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "leaderworkersets.leaderworkerset.x-k8s.io"},
    "spec": {
        "group": "leaderworkerset.x-k8s.io",
        "names": {"kind": "LeaderWorkerSet", "plural": "leaderworkersets", "singular": "leaderworkerset"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
_CHART: str = "lws-*/lws-chart/crds/*.yaml"
"""The chart of LeaderWorkerSet, which a build of level *full* keeps in the cache."""


@dataclass
class LwsGroup:
    """A group of pods. `revision` is that of its template."""

    revision: str
    ready: bool = False
    leaving: bool = False

    def pods(self, index: int, workload: Manifest) -> list[Manifest]:
        """Returns the group's pods, the leader first."""
        name, template = name_of(workload), workload["spec"]["leaderWorkerTemplate"]
        labels = {
            **labels_of(workload),
            "fairlead.io/revision": self.revision,
            "leaderworkerset.sigs.k8s.io/name": name,
            "leaderworkerset.sigs.k8s.io/group-index": str(index),
        }
        status = {"conditions": [{"type": "Ready", "status": "True" if self.ready else "False"}]}
        pods = []
        for member in range(int(template["size"])):
            leads = {} if member else {"fairlead.io/endpoint": "true"}
            metadata = {"name": f"{name}-{index}-{member}", "labels": {**labels, **leads}}
            metadata |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if self.leaving else {}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})
        return pods


@dataclass
class LwsControllers:
    """Both controllers, over groups by index. `live` is the last applied object."""

    live: Manifest
    groups: dict[int, LwsGroup] = field(default_factory=dict)
    replicas: int = 0
    partition: int = 0
    seen_replicas: int = 0
    old_revision: str = ""
    new_revision: str = ""

    def step(self) -> None:
        self._leader_worker_set()
        self._stateful_set()

    def _leader_worker_set(self) -> None:
        spec = self.live["spec"]
        desired, revision = int(spec["replicas"]), self.live["metadata"]["annotations"]["fairlead.io/revision"]
        rolling = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
        surge, floor = min(rolling["maxSurge"], desired), rolling["partition"]
        burst = desired + surge

        def replicas_with_surge(unready: int) -> int:
            return desired + max(0, unready - 1) if unready <= surge else burst

        groups = [self.groups.get(index) for index in range(self.replicas)]
        updated = [group is not None and group.ready and group.revision == revision for group in groups]
        unready = sum(not (index < len(updated) and updated[index]) for index in range(desired))
        if not self.new_revision:
            partition, replicas, self.old_revision = 0, desired, revision
        elif revision != self.new_revision:
            partition, replicas = min(desired, self.replicas), replicas_with_surge(desired)
        elif self.partition == 0 and self.replicas == desired:
            partition, replicas = 0, desired
        elif self.seen_replicas != desired:
            partition, replicas = min(self.partition, burst), replicas_with_surge(unready)
        else:
            step = rolling["maxUnavailable"] + surge - (burst - self.replicas)
            partition, replicas = self._next_partition(updated, step), replicas_with_surge(unready)
        self.new_revision, self.seen_replicas = revision, desired
        self.partition, self.replicas = max(partition, floor), replicas

    def _next_partition(self, updated: list[bool], step: int) -> int:
        tail = next((count for count, is_updated in enumerate(reversed(updated)) if not is_updated), len(updated))
        first = max(0, self.replicas - tail - step)
        groups = [self.groups.get(index) for index in range(self.replicas)]
        partition = first + sum(group is None or not group.ready for group in groups[:first])
        for index in range(min(partition, self.replicas - 1), first - 1, -1):
            group = groups[index]
            if group is not None and group.ready and group.revision != self.new_revision:
                break
            partition = index
        return min(partition, self.partition)

    def _stateful_set(self) -> None:
        """Runs the worst case: it stops all groups that it may. New groups below the partition are
        old ones.
        """
        for index in range(self.replicas):
            if index not in self.groups:
                self.groups[index] = LwsGroup(self.new_revision if index >= self.partition else self.old_revision)
        for index, group in self.groups.items():
            old = group.revision != self.new_revision and index >= self.partition
            group.leaving |= index >= self.replicas or old
        if {group.revision for group in self.groups.values()} == {self.new_revision} and not self.partition:
            self.old_revision = self.new_revision

    @property
    def pods(self) -> list[Manifest]:
        return [pod for index, group in self.groups.items() for pod in group.pods(index, self.live)]

    @property
    def serving_count(self) -> int:
        return sum(group.ready and not group.leaving for group in self.groups.values())


def worker_set_crd() -> Manifest:
    """Returns the CRD of the pinned release of LeaderWorkerSet, without its descriptions.

    Where that was not built, the CRD accepts any fields.
    """
    folder = binaries_folder()
    found = [] if folder is None else sorted(folder.parent.glob(_CHART))
    return _without_descriptions(load_document(found[-1].read_text())) if found else _PLAIN_CRD


def _without_descriptions(value: Any) -> Any:
    """Returns a schema whose texts are left out, since a request has at most 3 MiB."""
    if isinstance(value, list):
        return [_without_descriptions(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_descriptions(one)
        for key, one in value.items()
        if not (key == "description" and isinstance(one, str))
    }


def worker_set(metadata: Manifest, pod: Manifest, leader: Manifest | None = None) -> Manifest:
    """Returns a LeaderWorkerSet of two groups of two pods.

    pod: template of the workers, and of the leaders where `leader` is None.
    """
    template = {"size": 2, "workerTemplate": pod} | ({} if leader is None else {"leaderTemplate": leader})
    spec = {"replicas": 2, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": template}
    kind = LEADER_WORKER_SETS
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}
