"""The ids of stored responses: each names the instance that holds its response.

An engine keeps a stored response in its own memory, under an id of its own. A client gets this id
with a tag behind it: the instance, and a code that only gateways with the installation's secret can
make. So no gateway keeps anything, each one finds the instance, and a restart changes nothing. The
code covers the tenant: to all others, the id is unknown.

Ids are replaced where an engine writes them as the value of `id` or `response_id`.
"""

import hmac
import re
from collections.abc import Callable
from hashlib import blake2b, sha256
from typing import Final, NamedTuple

import xxhash

from fairlead.fleet.model import Fleet
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import UnknownResponse
from fairlead_gateway.openai.model_names import ServedNameRewriter

_INSTANCE_BYTES: Final = 8
_CODE_BYTES: Final = 12
_TAG_CHARACTERS: Final = 2 * (_INSTANCE_BYTES + _CODE_BYTES)
_MAX_INSTANCES: Final = 4_096
_MAX_PLACES: Final = 16_384
"""Limit: places in one read where a name or an id is replaced by a longer one."""
_SINGLE_QUOTE: Final = ord("'")
_TAG: Final = re.compile(r"[0-9a-f]+")
_OWN_ID: Final = re.compile(rb'"(?:id|response_id)": ?"(resp_[A-Za-z0-9_-]{1,128})"')
_VALID: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")


class HeldResponse(NamedTuple):
    """A stored response.

    model_key, instance_id: where it is held.
    client_id, engine_id: its ids for the client and for the engine.
    """

    model_key: str
    instance_id: str
    client_id: str
    engine_id: str


class ResponseIds:
    """The writer and reader of ids; `secret` is the installation's.

    Why BLAKE2b: with OpenSSL, HMAC costs ten times as much for a text so short.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = sha256(b"response" + secret).digest()
        self._seed = xxhash.xxh3_64_intdigest(self._key)
        self._digests: dict[str, bytes] = {}

    def client_id(self, engine_id: str, instance_id: str, tenant: CallerKey) -> str:
        """Returns the id for the client of a response that an instance holds."""
        instance = self._digests.get(instance_id)
        if instance is None:
            if len(self._digests) >= _MAX_INSTANCES:
                self._digests.clear()
            instance = self._digests[instance_id] = self._instance_digest(instance_id)
        return engine_id + self._tag(engine_id, instance, tenant)

    def find(self, client_id: str, tenant: CallerKey, fleet: Fleet) -> HeldResponse:
        """Returns where a response is held.

        fleet: of the models that the tenant may use.

        Raises UnknownResponse if no gateway has made the id for the tenant, or if the instance has
        left.
        """
        engine_id, tag = client_id[:-_TAG_CHARACTERS], client_id[-_TAG_CHARACTERS:]
        if not engine_id or _VALID.fullmatch(client_id) is None or _TAG.fullmatch(tag) is None:
            raise UnknownResponse(client_id)
        instance = bytes.fromhex(tag)[:_INSTANCE_BYTES]
        if not hmac.compare_digest(tag, self._tag(engine_id, instance, tenant)):
            raise UnknownResponse(client_id)
        for model_key in fleet.models:
            for candidate in fleet.instances.get(model_key, ()):
                if self._instance_digest(candidate.id) == instance:
                    return HeldResponse(model_key, candidate.id, client_id, engine_id)
        raise UnknownResponse(client_id)

    def _instance_digest(self, instance_id: str) -> bytes:
        return xxhash.xxh3_64_digest(instance_id.encode(), self._seed)

    def _tag(self, engine_id: str, instance: bytes, tenant: CallerKey) -> str:
        text = b"\0".join((b"response", tenant.encode(), instance, engine_id.encode()))
        code: bytes = blake2b(text, digest_size=_CODE_BYTES, key=self._key).digest()
        return (instance + code).hex()


class ResponseIdRewriter:
    """The rewriter of ids in one response.

    held: the response that the request named; None without one.
    before: another rewriter, which comes first.
    on_named: gets the response's own id, as the client has it, once it is known.
    """

    def __init__(
        self,
        ids: ResponseIds,
        instance_id: str,
        tenant: CallerKey,
        held: HeldResponse | None,
        before: ServedNameRewriter | None = None,
        on_named: Callable[[str], None] | None = None,
    ) -> None:
        self._ids = ids
        self._before = before
        self._on_named = on_named
        self._instance_id = instance_id
        self._tenant = tenant
        self._pairs = [] if held is None else [(held.engine_id.encode(), held.client_id.encode())]
        self._is_named = False

    def rewrite(self, data: bytes) -> bytes:
        return self._with_ids(data if self._before is None else self._before.rewrite(data))

    def _with_ids(self, data: bytes) -> bytes:
        if data.find(b"resp_") < 0:
            return data
        if not self._is_named:
            self._add_own(data)
        for engine_id, client_id in self._pairs:
            data = data.replace(b'"%b"' % engine_id, b'"%b"' % client_id, _MAX_PLACES)
            if _SINGLE_QUOTE in data:
                data = data.replace(b"'%b'" % engine_id, b"'%b'" % client_id, _MAX_PLACES)
        return data

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        events = events if self._before is None else self._before.rewrite_events(events)
        return [self._with_ids(event) for event in events]

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]:
        chunks = chunks if self._before is None else self._before.rewrite_chunks(chunks, last)
        return [self._with_ids(chunk) for chunk in chunks]

    def _add_own(self, data: bytes) -> None:
        """Adds the id of the response itself, which is the first in its body or stream."""
        match = _OWN_ID.search(data)
        if match is None:
            return
        self._is_named = True
        engine_id = match[1]
        known = dict(self._pairs).get(engine_id)
        if known is None:
            known = self._ids.client_id(engine_id.decode(), self._instance_id, self._tenant).encode()
            self._pairs.append((engine_id, known))
        if self._on_named is not None:
            self._on_named(known.decode())
