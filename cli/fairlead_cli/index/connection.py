"""The connection to Redis, and the models that have an index there."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.files import STDIN_PATH
from fairlead.names import closest_matches
from fairlead.runtime.clock import Clock
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.exit_codes import IndexUnreachable
from fairlead_cli.local.run_directory import stacks_at
from fairlead_cli.target import ClusterOptions, is_cluster_target
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

INDEX_TOKENS_BYTES: Final = 64 * 1024 * 1024
"""Limit: a file of token ids that `fairlead index match` reads."""

_CLUSTER: Final = ClusterOptions()
_TOKEN_DECODER: Final = msgspec.json.Decoder(list[int])

INDEX_MODELS: Final = 10_000
"""Limit: models that `fairlead index` finds in one Redis."""


@dataclass(frozen=True, slots=True)
class IndexSource:
    """Flags that select the Redis with the index: by its URL, by its stack, or by its cluster."""

    redis: Annotated[
        str | None,
        Parameter(help="The Redis. Default: FAIRLEAD_REDIS_URL, else that of `fairlead up`, else of the cluster."),
    ] = None
    manage: Annotated[str | None, Parameter(help="The management address of a `fairlead up`, whose Redis is read.")] = (
        None
    )
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


def read_token_ids(path: Path) -> list[int]:
    """Returns the token ids of a prompt from a JSON list in a file. ``-`` is standard input.

    Raises BadInput for other content, OSError for an unreadable file.
    """
    if str(path) == STDIN_PATH:
        data = sys.stdin.buffer.read(INDEX_TOKENS_BYTES + 1)
    else:
        with path.open("rb") as file:
            data = file.read(INDEX_TOKENS_BYTES + 1)
    if len(data) > INDEX_TOKENS_BYTES:
        text = f"{path} has more than {INDEX_TOKENS_BYTES} bytes"
        raise BadInput(text, field="--tokens", hint="no prompt is that long")
    try:
        return _TOKEN_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        text = f"{path} is not a JSON list of token ids: {str(error)[:120]}"
        raise BadInput(text, field="--tokens", hint="write it as [1, 2, 3]") from None


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


async def run_commands(link: RedisLink, *commands: Command) -> list[Any]:
    """Returns the replies in order. Raises IndexUnreachable."""
    replies = await link.run(commands)
    if replies is None:
        raise unreachable_error(link)
    return replies


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


@dataclass(frozen=True, slots=True)
class IndexAddress:
    """URL of Redis, None when none is known, and the secret of the prefix hashes.

    namespace: of the kubeconfig, for bare names of models; None without a cluster.
    is_model_deleted: returns whether a model (``namespace/name``) exists no more; None without a
    cluster.
    read_pod_names: returns the pods of a namespace, uid → name; None without a cluster.
    """

    redis: str | None
    hash_secret: str
    namespace: str | None = None
    is_model_deleted: Callable[[str], Awaitable[bool]] | None = None
    read_pod_names: Callable[[str], Awaitable[Mapping[str, str]]] | None = None


@contextmanager
def open_index(source: IndexSource) -> Iterator[IndexAddress]:
    """Yields the address: from the options, from a cluster, or of the newest stack here that has a
    Redis.

    Raises ClusterUnreachable, or BadInput that names a missing permission.
    """
    settings = read_settings(CliSettings, os.environ)
    url = source.redis or (None if source.cluster.is_explicit or source.manage else settings.redis_url)
    secret = settings.hash_secret or ""
    if is_cluster_target(source.cluster, url or source.manage, "--redis" if url else "--manage"):
        from fairlead_cli.cluster.installation import open_installation

        with open_installation(source.cluster) as installation:
            secret = secret or installation.hash_secret()
            namespace = installation.access.namespace
            yield IndexAddress(
                installation.redis_url(),
                secret,
                namespace,
                installation.is_model_deleted,
                installation.read_pod_names,
            )
    elif url:
        yield IndexAddress(url, secret)
    else:
        stack = next((stack for stack in stacks_at(source.manage) if stack.redis), None)
        yield IndexAddress(stack.redis, secret or stack.hash_secret) if stack else IndexAddress(None, secret)
