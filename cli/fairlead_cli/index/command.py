"""``fairlead index``: from the options to the exit code."""

import asyncio
import sys
from collections.abc import Mapping

import msgspec

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, SystemClock
from fairlead.units import format_duration
from fairlead_cli.console import stdout_console, terminal_text
from fairlead_cli.errors import ClusterUnreachable, IndexUnreachable, UnusableIndex
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, report_failure
from fairlead_cli.index.address import IndexAddress, open_index
from fairlead_cli.index.connection import choose_model, connect, list_models
from fairlead_cli.index.options import IndexOptions, read_token_ids
from fairlead_cli.index.snapshot import IndexSnapshot, take_snapshot
from fairlead_cli.output import format_document, is_document
from fairlead_kvstore.redis.link import RedisLink


def run(options: IndexOptions) -> int:
    """Queries, prints and returns the exit code. Raises BadInput for wrong usage and for an unknown
    model.
    """
    options.validate()
    try:
        with open_index(options.source) as address:
            return asyncio.run(_run(options, address, SystemClock(), Limits()))
    except (IndexUnreachable, ClusterUnreachable) as error:
        return report_failure("index", error, UNREACHABLE)
    except UnusableIndex as error:
        return report_failure("index", error, PROBLEM)


async def _run(options: IndexOptions, address: IndexAddress, clock: Clock, limits: Limits) -> int:
    secret = address.hash_secret.encode()
    prompt = read_token_ids(options.tokens, limits) if options.tokens is not None else []
    async with connect(address.redis, clock, limits) as link:
        models_ = await list_models(link, limits)
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
