"""The bytes that all engines of an indexer occupy in it, with shares by namespace."""


class BufferedBytes:
    """Bytes that all engines of an indexer occupy, by namespace, and their bound.

    total: the bytes of all namespaces.

    Why: each engine has a bound of its own, some of 64 MiB, and any number of engines may reach it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._namespaces: dict[str, int] = {}
        self.total = 0

    def add(self, namespace: str, change: int) -> None:
        """Adds a change of an engine's bytes."""
        before = self._namespaces.get(namespace, 0)
        size = max(0, before + change)
        self.total += size - before
        if size:
            self._namespaces[namespace] = size
        else:
            self._namespaces.pop(namespace, None)

    def is_over(self, namespace: str) -> bool:
        """Returns whether a namespace may buffer no more.

        Then the bytes of all are above the bound, and it has the mean of all namespaces or more.
        """
        if self.total <= self._max_bytes:
            return False
        return self._namespaces.get(namespace, 0) * len(self._namespaces) >= self.total
