"""Loads of LoRA adapters: which load of each name has the blocks that count.

KV events name a LoRA adapter and number its load; the number is new at each load. In vLLM a handle
covers the *path* the adapter was loaded from, which events do not contain. When ``support-bot`` is
unloaded and loaded again from another path, the old blocks stay resident without any event, and yet
no request hits them. An index by name leaves ghosts there.

So the blocks of a name count under one load. The first event with a later number shows whether the
content is the same: it continues from a handle of these blocks, or stores one again. The handle
covers the path, so equal handles are equal content. Engines that leave the path out of the hash do
serve the old blocks, so this is correct for them. Otherwise the blocks of the name are dropped
(``InstanceBlocks``). Requests of an earlier load may still run; their blocks are left out, unless a
handle shows the same.

vLLM keeps the number of an adapter that it loads in place. There, the first block of a prompt under
another handle than before shows another content.

Some of the dropped blocks may be hit after all. The first prompt of a load from the same path had
nothing cached, or the first path returns. So the instance is incomplete until its cache is cleared.

Blocks of an adapter without a name or a number are not stored. No request finds the former, and a
reload of the latter would show in no event.
"""

from typing import Final

from fairlead.names import MAX_NAME_BYTES
from fairlead_kvstore.blockstore.types import AdapterSnapshot, LoadNumber

_MAX_EARLIER: Final = 128


class AdapterLoads:
    """The LoRA adapters of one instance, by name.

    newest: the load whose blocks count.
    indexes: the value of the column ``adapters``; 0 is the base model.
    """

    def __init__(self) -> None:
        self.newest: dict[str, LoadNumber] = {}
        self.indexes: dict[str, int] = {}
        self._earlier: dict[tuple[str, LoadNumber], None] = {}  # oldest first

    def snapshot(self) -> AdapterSnapshot:
        return AdapterSnapshot(self.newest, list(self._earlier))

    def restore(self, snapshot: AdapterSnapshot) -> None:
        self.newest, self._earlier = dict(snapshot.loads), dict.fromkeys(snapshot.earlier)
        self.indexes = {name: index for index, name in enumerate(self.newest, 1)}

    def has_room_for(self, name: str | None, number: LoadNumber | None, max_names: int) -> bool:
        """Returns whether blocks of this load may be stored.

        Its name is known, or fewer than ``max_names`` are. Neither name nor number is too long, and
        the name has no characters that control a terminal.
        """
        if name is None or number is None or (isinstance(number, str) and len(number) > MAX_NAME_BYTES):
            return False
        return name in self.newest or (
            len(self.newest) < max_names and len(name) <= MAX_NAME_BYTES and name.isprintable()
        )

    def is_later(self, name: str, number: LoadNumber) -> bool:
        """Returns whether a load comes after the newest one of its name."""
        newest = self.newest.get(name)
        if isinstance(number, int) and isinstance(newest, int):
            return number > newest
        return number != newest and (name, number) not in self._earlier

    def begin(self, name: str, number: LoadNumber) -> None:
        """Takes a later load for the newest one."""
        if name in self.newest:
            self._earlier[name, self.newest[name]] = None
            if len(self._earlier) > _MAX_EARLIER:
                del self._earlier[next(iter(self._earlier))]
        self.indexes.setdefault(name, len(self.indexes) + 1)
        self.newest[name] = number
