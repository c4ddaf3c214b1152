"""The connection to Redis, and the models that have an index there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock
from fairlead_cli.errors import IndexUnreachable
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.link import RedisLink

INDEX_MODELS: Final = 10_000
"""Limit: models that `fairlead index` finds in one Redis."""


@asynccontextmanager
async def connect(url: str | None, clock: Clock, limits: Limits) -> AsyncIterator[RedisLink]:
    """Yields a connected link. Raises BadInput without a URL, IndexUnreachable when Redis does not
    answer.
    """
    if not url:
        hint = "give --redis redis://HOST:PORT/0, or set FAIRLEAD_REDIS_URL"
        raise BadInput("no Redis is named, and no `fairlead up` runs here with one", field="--redis", hint=hint)
    link = RedisLink(url, clock, limits=limits, name="fairlead-cli")
    link.start()
    try:
        try:
            async with asyncio.timeout(limits.redis_connect_seconds):
                await link.wait_connected()
        except TimeoutError:
            raise unreachable_error(link) from None
        yield link
    finally:
        await link.stop()


def unreachable_error(link: RedisLink) -> IndexUnreachable:
    """Returns the error for a Redis that does not answer."""
    return IndexUnreachable(
        f"no Redis answers: {link.describe()}", hint="gateways work without Redis; is this the URL that they have?"
    )


async def list_models(link: RedisLink) -> list[str]:
    """Returns all models that have an index, sorted. Raises IndexUnreachable."""
    names = await link.scan_keys(redis_keys.index_pattern(), INDEX_MODELS)
    if names is None:
        raise unreachable_error(link)
    return sorted({key for name in names if (key := redis_keys.model_of_index_key(name)) is not None})


def choose_model(name: str | None, known: Sequence[str], namespace: str | None = None) -> str:
    """Returns the key ``namespace/name`` of a model. Raises BadInput with the nearest names.

    namespace: that of a bare name which several models have.
    """
    if name is None:
        if len(known) == 1:
            return known[0]
        hint = f"there are: {', '.join(known[:5])}" if known else "this Redis has no index at all: does an indexer run?"
        raise BadInput("name a model", field="--model", hint=hint)
    if name in known:
        return name
    matches = [key for key in known if key.partition("/")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if f"{namespace}/{name}" in matches:
        return f"{namespace}/{name}"
    if matches:
        raise BadInput(f"several models are called {name!r}", field="--model", hint=f"say which: {', '.join(matches)}")
    if not known:
        hint = "this Redis has no index at all: does an indexer run, and does it write to this Redis?"
        raise BadInput(f"no model {name!r} has an index", field="--model", hint=hint)
    similar = closest_matches(name, [*known, *(key.partition("/")[2] for key in known)])
    keys = [key for key in known if key in similar or key.partition("/")[2] in similar] or list(known[:5])
    raise BadInput(f"no model {name!r} has an index", field="--model", hint=f"known: {', '.join(keys)}")
