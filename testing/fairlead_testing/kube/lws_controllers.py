"""The controllers of LeaderWorkerSets (0.8.0) and of the StatefulSet below, over groups by place: a copy of their rules, for tests.

Read in ``rollingUpdateParameters`` of the former: what they do with ``maxSurge``, ``maxUnavailable``, ``partition`` and a number that
changes meanwhile. What takes time (a group that drains, one that gets ready) is the test's to say.
"""

from dataclasses import dataclass, field

from fairlead.kube.resources import Manifest, labels_of, name_of


@dataclass
class LwsGroup:
    """One instance. ``revision`` is that of the template which it was made of."""

    revision: str
    ready: bool = False
    leaving: bool = False

    def pods(self, place: int, workload: Manifest) -> list[Manifest]:
        """Its members, the leader first."""
        name, template = name_of(workload), workload["spec"]["leaderWorkerTemplate"]
        labels = {
            **labels_of(workload),
            "fairlead.io/revision": self.revision,
            "leaderworkerset.sigs.k8s.io/name": name,
            "leaderworkerset.sigs.k8s.io/group-index": str(place),
        }
        status = {"conditions": [{"type": "Ready", "status": "True" if self.ready else "False"}]}
        pods = []
        for member in range(int(template["size"])):
            leads = {} if member else {"fairlead.io/endpoint": "true"}
            metadata = {"name": f"{name}-{place}-{member}", "labels": {**labels, **leads}}
            metadata |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if self.leaving else {}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})
        return pods


@dataclass
class LwsControllers:
    """Of LeaderWorkerSets and StatefulSets, over groups by place. ``live`` is what was applied last."""

    live: Manifest
    groups: dict[int, LwsGroup] = field(default_factory=dict)
    replicas: int = 0
    partition: int = 0
    seen_replicas: int = 0
    old_revision: str = ""
    new_revision: str = ""

    def step(self) -> None:
        """One look of each."""
        self._leader_worker_set()
        self._stateful_set()

    def _leader_worker_set(self) -> None:
        spec = self.live["spec"]
        asked, revision = int(spec["replicas"]), self.live["metadata"]["annotations"]["fairlead.io/revision"]
        rolling = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
        surge, floor = min(rolling["maxSurge"], asked), rolling["partition"]
        burst = asked + surge

        def number(unready: int) -> int:
            return asked + max(0, unready - 1) if unready <= surge else burst

        states = [self.groups.get(place) for place in range(self.replicas)]
        news = [one is not None and one.ready and one.revision == revision for one in states]
        unready = sum(not (place < len(news) and news[place]) for place in range(asked))
        if not self.new_revision:
            partition, replicas, self.old_revision = 0, asked, revision
        elif revision != self.new_revision:
            partition, replicas = min(asked, self.replicas), number(asked)
        elif self.partition == 0 and self.replicas == asked:
            partition, replicas = 0, asked
        elif self.seen_replicas != asked:
            partition, replicas = min(self.partition, burst), number(unready)
        else:
            step = rolling["maxUnavailable"] + surge - (burst - self.replicas)
            partition, replicas = self._rolled(news, step), number(unready)
        self.new_revision, self.seen_replicas = revision, asked
        self.partition, self.replicas = max(partition, floor), replicas

    def _rolled(self, news: list[bool], step: int) -> int:
        tail = next((count for count, new in enumerate(reversed(news)) if not new), len(news))
        first = max(0, self.replicas - tail - step)
        states = [self.groups.get(place) for place in range(self.replicas)]
        partition = first + sum(one is None or not one.ready for one in states[:first])
        for place in range(min(partition, self.replicas - 1), first - 1, -1):
            one = states[place]
            if one is not None and one.ready and one.revision != self.new_revision:
                break
            partition = place
        return min(partition, self.partition)

    def _stateful_set(self) -> None:
        """At the worst: it ends at once all that it may. What is made anew below the partition is as before."""
        for place in range(self.replicas):
            if place not in self.groups:
                self.groups[place] = LwsGroup(self.new_revision if place >= self.partition else self.old_revision)
        for place, one in self.groups.items():
            old = one.revision != self.new_revision and place >= self.partition
            one.leaving |= place >= self.replicas or old
        if {one.revision for one in self.groups.values()} == {self.new_revision} and not self.partition:
            self.old_revision = self.new_revision

    @property
    def pods(self) -> list[Manifest]:
        """Of all groups."""
        return [pod for place, one in self.groups.items() for pod in one.pods(place, self.live)]

    @property
    def serving_count(self) -> int:
        """Groups that are ready and stay."""
        return sum(one.ready and not one.leaving for one in self.groups.values())
