"""``fairlead index``: state, consistency and changes of the index in Redis.

The verbs read Redis as a gateway does and change nothing. Hashes of prompts need the installation's
secret, the same as gateways and the indexer have.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, SystemClock
from fairlead.units import format_duration
from fairlead_cli.console import stdout_console, terminal_text
from fairlead_cli.exit_codes import (
    OK,
    PROBLEM,
    UNREACHABLE,
    ClusterUnreachable,
    IndexUnreachable,
    UnusableIndex,
    report_failure,
)
from fairlead_cli.index.connection import (
    IndexAddress,
    IndexSource,
    choose_model,
    connect,
    list_models,
    open_index,
    read_token_ids,
)
from fairlead_cli.index.snapshot import IndexSnapshot, take_snapshot
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.target import ModelFlag, qualified_name
from fairlead_kvstore.redis.link import RedisLink

_Source = Annotated[IndexSource, Parameter(name="*")]
_HERE = IndexSource()
_InstanceFlag = Annotated[str | None, Parameter(help="Only instances whose id begins like this.")]


@dataclass(frozen=True, slots=True)
class _OpenIndex:
    """A connected Redis, and the models that have an index there."""

    link: RedisLink
    address: IndexAddress
    models: Sequence[str]
    clock: Clock
    limits: Limits

    def choose(self, model: str | None, source: IndexSource) -> str:
        name = qualified_name(model, source.cluster.namespace)
        return choose_model(name, self.models, self.address.namespace)

    async def snapshot(self, key: str) -> IndexSnapshot:
        return await take_snapshot(self.link, key, self.clock)


def index_stats(model: ModelFlag = None, *, source: _Source = _HERE, output: OutputFlag = "table") -> int:
    """Show who writes the index of each model, and what each instance has cached.

    Exits 0 when all is well, 1 when an index is unusable, incomplete or not written. Exits 2 on
    wrong usage or an unknown model, 3 when Redis cannot be reached.
    """

    async def show_stats(index: _OpenIndex) -> int:
        from fairlead_cli.index.stats import build_stats, render_stats

        address = index.address
        keys = index.models if model is None else [index.choose(model, source)]
        all_stats = [build_stats(await index.snapshot(key)) for key in keys]
        pod_names: dict[str, Mapping[str, str]] = {}  # by namespace
        for model_stats in all_stats:
            if address.is_model_deleted is not None and not model_stats.is_healthy:
                model_stats.deleted = await address.is_model_deleted(model_stats.model)
            if address.read_pod_names is not None:
                namespace = model_stats.model.partition("/")[0]
                if namespace not in pod_names:
                    pod_names[namespace] = await address.read_pod_names(namespace)
                model_stats.name_pods(pod_names[namespace])
        if is_document(output):
            print(format_document({"models": all_stats}, output))
        elif not all_stats:
            print("this Redis has no index: does an indexer run, and does it write to this Redis?", file=sys.stderr)
        else:
            stdout_console().print(render_stats(all_stats, is_wide=output == "wide"))
        return OK if all_stats and all(model_stats.is_healthy for model_stats in all_stats) else PROBLEM

    return _run(source, show_stats)


def index_match(
    *,
    model: ModelFlag = None,
    tokens: Annotated[
        Path,
        Parameter(
            allow_leading_hyphen=True, help="A file with the prompt's token ids, a JSON list; - is standard input."
        ),
    ],
    adapter: Annotated[str | None, Parameter(help="The LoRA adapter that the request names.")] = None,
    salt: Annotated[str | None, Parameter(help="The request's cache_salt.")] = None,
    source: _Source = _HERE,
    output: Annotated[OutputFormat, Parameter(name=["--output", "-o"], help="JSON, YAML or a table.")] = "json",
) -> int:
    """Show which instances have a prompt cached, how far, and in which tier.

    The hashes need the secret of the installation: FAIRLEAD_HASH_SECRET, else that of the stack or
    the cluster.

    Exits 0 with an answer, 1 when the index is unusable or not written. Exits 2 on wrong usage or
    an unknown model, 3 when Redis cannot be reached.
    """
    token_ids = read_token_ids(tokens)

    async def show_match(index: _OpenIndex) -> int:
        from fairlead_cli.index.prefix_match import TokenPrompt, check_secret, match_prompt, render_match

        secret = index.address.hash_secret.encode()
        snapshot = await index.snapshot(index.choose(model, source))
        check_secret(snapshot, secret)
        answer = match_prompt(snapshot, TokenPrompt(token_ids, adapter, salt), secret)
        print(format_document(answer, output) if is_document(output) else terminal_text(render_match(answer)))
        if snapshot.leader is None:
            since = (
                ""
                if snapshot.last_written is None
                else f" since {format_duration(max(0.0, snapshot.wall - snapshot.last_written))}"
            )
            print(f"fairlead: no indexer writes this index{since}; the answer may be out of date", file=sys.stderr)
        return OK

    return _run(source, show_match)


def index_verify(
    model: ModelFlag = None,
    *,
    instance: _InstanceFlag = None,
    source: _Source = _HERE,
    output: OutputFlag = "table",
) -> int:
    """Compare the index with itself, and with what engines can replay.

    Engines whose addresses can be reached from here are queried for their published events.

    Exits 0 when nothing differs, 1 when something does or the index is unusable. Exits 2 on wrong
    usage or an unknown model, 3 when Redis cannot be reached.
    """

    async def compare(index: _OpenIndex) -> int:
        from fairlead_cli.index.verification import render_lines, verify

        snapshot = await index.snapshot(index.choose(model, source))
        secret = index.address.hash_secret.encode()
        report = await verify(index.link, snapshot, secret, index.clock, index.limits, instance)
        if is_document(output):
            print(format_document(report, output))
        else:
            print(terminal_text("\n".join(render_lines(report))))
        return PROBLEM if report.differences else OK

    return _run(source, compare)


def index_watch(
    model: ModelFlag = None,
    *,
    instance: _InstanceFlag = None,
    kind: Annotated[
        Literal["stored", "removed", "cleared", "marked"] | None,
        Parameter(help="Only batches that have such a change, and only these."),
    ] = None,
    count: Annotated[int | None, Parameter(help="End after so many batches.")] = None,
    source: _Source = _HERE,
    output: OutputFlag = "table",
) -> int:
    """Print changes of the index as they happen, one batch a line, until Ctrl-C.

    Exits 0 after --count batches, 1 when the index is not written. Exits 2 on wrong usage or an
    unknown model, 3 when Redis cannot be reached.
    """
    if count is not None and count < 1:
        raise BadInput(f"--count {count} is less than one batch", field="--count", hint="leave --count out for no end")

    async def follow(index: _OpenIndex) -> int:
        from fairlead_cli.index.change_stream import ChangeBatch, ChangeFilter, follow_changes, format_batch

        def show(batch: ChangeBatch) -> None:
            if output == "json":
                print(msgspec.json.encode(batch).decode(), flush=True)
            elif output == "yaml":
                print(f"---\n{format_document(batch, output)}", flush=True)
            else:
                print(terminal_text(format_batch(batch)), flush=True)

        key = index.choose(model, source)
        await follow_changes(index.link, key, ChangeFilter(instance, kind), show, count)
        return OK

    return _run(source, follow)


def _run(source: IndexSource, query: Callable[[_OpenIndex], Awaitable[int]]) -> int:
    """Returns a query's exit code. Raises BadInput for wrong usage and for an unknown model."""

    async def connect_and_query(address: IndexAddress) -> int:
        clock, limits = SystemClock(), Limits()
        async with connect(address.redis, clock, limits) as link:
            return await query(_OpenIndex(link, address, await list_models(link), clock, limits))

    try:
        with open_index(source) as address:
            return asyncio.run(connect_and_query(address))
    except (IndexUnreachable, ClusterUnreachable) as error:
        return report_failure(error, UNREACHABLE)
    except UnusableIndex as error:
        return report_failure(error, PROBLEM)
