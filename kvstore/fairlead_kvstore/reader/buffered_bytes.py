"""The bytes that all engines of an indexer occupy in it, with shares by namespace."""


class BufferedBytes:
    """Bytes that all engines of an indexer occupy, by namespace, and their bound.

    Why: each engine has a bound of its own, some of 64 MiB, and any number of engines may reach it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._namespaces: dict[str, int] = {}

    @property
    def total(self) -> int:
        """The bytes of all namespaces."""
        return sum(self._namespaces.values())

    def add(self, namespace: str, change: int) -> None:
        """Adds a change of an engine's bytes."""
        size = self._namespaces.get(namespace, 0) + change
        if size > 0:
            self._namespaces[namespace] = size
        else:
            self._namespaces.pop(namespace, None)

    def is_over(self, namespace: str) -> bool:
        """Returns whether a namespace is to buffer no more: all have too many bytes together, and
        it has a mean share or more.
        """
        total = self.total
        return total > self._max_bytes and self._namespaces.get(namespace, 0) * len(self._namespaces) >= total
