"""Watches of ``kubectl`` during a test: the changes of objects line by line, none missed."""

import subprocess
import threading
from collections.abc import Callable
from typing import Self

from e2e.kube.cluster_access.kubectl import Kubectl


class KubectlWatch:
    """Each watch is (who takes a line, the words behind ``kubectl get``), for as long as the block
    lasts."""

    def __init__(self, here: Kubectl, *watches: tuple[Callable[[str], None], tuple[str, ...]]) -> None:
        self._here = here
        self._watches = watches

    def __enter__(self) -> Self:
        command = ("kubectl", "-n", self._here.namespace, "get")
        environ = dict(self._here.environ)
        self._processes = [
            subprocess.Popen([*command, *words, "--watch"], env=environ, stdout=subprocess.PIPE, text=True)
            for _, words in self._watches
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(process, take))
            for process, (take, _) in zip(self._processes, self._watches, strict=True)
        ]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process, reader in zip(self._processes, self._readers, strict=True):
            process.terminate()
            reader.join()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @staticmethod
    def _read(process: "subprocess.Popen[str]", take: Callable[[str], None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            take(line.rstrip("\n"))


class ReplicaWatch(KubectlWatch):
    """The wanted replicas of each Deployment of a model: the first value and every change."""

    def __init__(self, here: Kubectl, model: str) -> None:
        shown = "jsonpath={.metadata.name} {.spec.replicas}{'\\n'}"
        super().__init__(here, (self._take, ("deployments", "-l", f"fairlead.io/model={model}", "-o", shown)))
        self.changes: list[tuple[str, int]] = []
        self.now: dict[str, int] = {}
        self.most_together = 0

    def _take(self, line: str) -> None:
        name, number = line.split(" ")
        if self.now.get(name) != int(number):
            self.now[name] = int(number)
            self.changes.append((name, int(number)))
            self.most_together = max(self.most_together, sum(self.now.values()))
