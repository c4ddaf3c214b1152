"""``fairlead index``: state, consistency and changes of the index in Redis.

The verbs read Redis as a gateway does and change nothing. Hashes of prompts need the installation's
secret, the same as gateways and the indexer have.
"""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

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
    IndexOptions,
    IndexSource,
    choose_model,
    connect,
    list_models,
    open_index,
    read_token_ids,
)
from fairlead_cli.index.snapshot import IndexSnapshot, take_snapshot
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.target import ModelFlag
from fairlead_kvstore.redis.link import RedisLink

_Source = Annotated[IndexSource, Parameter(name="*")]
_HERE = IndexSource()
_InstanceFlag = Annotated[str | None, Parameter(help="Only instances whose id begins like this.")]


def index_stats(model: ModelFlag = None, *, source: _Source = _HERE, output: OutputFlag = "table") -> int:
    """Show who writes the index of each model, and what each instance has cached.

    Exits 0 when all is well, 1 when an index is unusable, incomplete or not written. Exits 2 on
    wrong usage or an unknown model, 3 when Redis cannot be reached.
    """
    return run_index(IndexOptions("stats", model, source, output=output))


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
    return run_index(IndexOptions("match", model, source, tokens, adapter, salt, output=output))


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
    return run_index(IndexOptions("verify", model, source, instance=instance, output=output))


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
    return run_index(IndexOptions("watch", model, source, instance=instance, kind=kind, count=count, output=output))


def run_index(options: IndexOptions) -> int:
    """Queries, prints and returns the exit code. Raises BadInput for wrong usage and for an unknown
    model.
    """
    options.validate()
    try:
        with open_index(options.source) as address:
            return asyncio.run(_query(options, address, SystemClock(), Limits()))
    except (IndexUnreachable, ClusterUnreachable) as error:
        return report_failure("index", error, UNREACHABLE)
    except UnusableIndex as error:
        return report_failure("index", error, PROBLEM)


async def _query(options: IndexOptions, address: IndexAddress, clock: Clock, limits: Limits) -> int:
    secret = address.hash_secret.encode()
    prompt = read_token_ids(options.tokens) if options.tokens is not None else []
    async with connect(address.redis, clock, limits) as link:
        models_ = await list_models(link)
        if options.action == "stats":
            if options.model is not None:
                models_ = [choose_model(options.qualified_model, models_, address.namespace)]
            snapshots = [await take_snapshot(link, key, clock, limits) for key in models_]
            return await _stats(options, snapshots, address)
        key = choose_model(options.qualified_model, models_, address.namespace)
        if options.action == "watch":
            return await _watch(options, link, key)
        snapshot = await take_snapshot(link, key, clock, limits)
        if options.action == "verify":
            return await _verify(options, link, snapshot, secret, clock, limits)
        return await _match(options, link, snapshot, prompt, secret)


async def _stats(options: IndexOptions, snapshots: list[IndexSnapshot], address: IndexAddress) -> int:
    from fairlead_cli.index.stats import build_stats, render_stats

    all_stats = [build_stats(snapshot) for snapshot in snapshots]
    pod_names: dict[str, Mapping[str, str]] = {}  # by namespace
    for model_stats in all_stats:
        if address.is_model_deleted is not None and not model_stats.is_healthy:
            model_stats.deleted = await address.is_model_deleted(model_stats.model)
        if address.read_pod_names is not None:
            namespace = model_stats.model.partition("/")[0]
            if namespace not in pod_names:
                pod_names[namespace] = await address.read_pod_names(namespace)
            model_stats.name_pods(pod_names[namespace])
    if is_document(options.output):
        print(format_document({"models": all_stats}, options.output))
    elif not all_stats:
        print("this Redis has no index: does an indexer run, and does it write to this Redis?", file=sys.stderr)
    else:
        stdout_console().print(render_stats(all_stats, is_wide=options.output == "wide"))
    return OK if all_stats and all(model_stats.is_healthy for model_stats in all_stats) else PROBLEM


async def _match(
    options: IndexOptions, link: RedisLink, snapshot: IndexSnapshot, tokens: list[int], secret: bytes
) -> int:
    from fairlead_cli.index.prefix_match import TokenPrompt, check_secret, match_prompt, read_ages, render_match

    check_secret(snapshot, secret)
    answer, last = match_prompt(snapshot, TokenPrompt(tokens, options.adapter, options.salt), secret)
    answer.set_ages(await read_ages(link, snapshot, last))
    print(
        format_document(answer, options.output) if is_document(options.output) else terminal_text(render_match(answer))
    )
    if snapshot.lease is None:
        since = (
            ""
            if snapshot.last_written is None
            else f" since {format_duration(max(0.0, snapshot.wall - snapshot.last_written))}"
        )
        print(f"fairlead index: no indexer writes this index{since}; the answer may be out of date", file=sys.stderr)
    return OK


async def _watch(options: IndexOptions, link: RedisLink, key: str) -> int:
    from fairlead_cli.index.change_stream import ChangeBatch, ChangeFilter, follow_changes, format_batch

    def show(batch: ChangeBatch) -> None:
        if options.output == "json":
            print(msgspec.json.encode(batch).decode(), flush=True)
        elif options.output == "yaml":
            print(f"---\n{format_document(batch, options.output)}", flush=True)
        else:
            print(terminal_text(format_batch(batch)), flush=True)

    await follow_changes(link, key, ChangeFilter(options.instance, options.kind), show, options.count)
    return OK


async def _verify(
    options: IndexOptions, link: RedisLink, snapshot: IndexSnapshot, secret: bytes, clock: Clock, limits: Limits
) -> int:
    from fairlead_cli.index.verification import render_lines, verify

    report = await verify(link, snapshot, secret, clock, limits, options.instance)
    if is_document(options.output):
        print(format_document(report, options.output))
    else:
        print(terminal_text("\n".join(render_lines(report))))
    return PROBLEM if report.differences else OK
