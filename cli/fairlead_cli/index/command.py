"""``fairlead index``, from its arguments to its exit code."""

import asyncio
import os
import sys

import msgspec

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, SystemClock
from fairlead.settings import CliSettings, read_settings
from fairlead.units import format_duration
from fairlead_cli.console import stdout_console
from fairlead_cli.errors import IndexUnreachable, UnusableIndex
from fairlead_cli.index.connection import choose_model, connect, list_models
from fairlead_cli.index.options import IndexOptions, read_token_ids
from fairlead_cli.index.snapshot import IndexSnapshot, take_snapshot
from fairlead_cli.local.run_directory import running_stacks
from fairlead_kvstore.redis.link import RedisLink

OK, PROBLEM, UNREACHABLE = 0, 1, 3


def run(options: IndexOptions) -> int:
    """Ask, print, judge. Raises BadInput for wrong usage and for a model that is not there."""
    options.validate()
    try:
        return asyncio.run(_run(options, read_settings(CliSettings, os.environ), SystemClock(), Limits()))
    except IndexUnreachable as error:
        print(f"fairlead index: {error}", file=sys.stderr)
        return UNREACHABLE
    except UnusableIndex as error:
        print(f"fairlead index: {error}", file=sys.stderr)
        return PROBLEM


async def _run(asked: IndexOptions, settings: CliSettings, clock: Clock, limits: Limits) -> int:
    url, words = _place(asked, settings)
    secret = words.encode()
    prompt = read_token_ids(asked.tokens, limits) if asked.tokens is not None else []
    async with connect(url, clock, limits) as link:
        known = await list_models(link, limits)
        if asked.action == "stats":
            return await _stats(asked, link, known, clock, limits)
        key = choose_model(asked.model, known)
        if asked.action == "watch":
            return await _watch(asked, link, key, limits)
        picture = await take_snapshot(link, key, clock, limits)
        if asked.action == "verify":
            return await _verify(asked, link, picture, secret, clock, limits)
        return await _match(asked, link, picture, prompt, secret, limits)


def _place(asked: IndexOptions, settings: CliSettings) -> tuple[str | None, str]:
    """The Redis, and the secret of its hashes: as named, else those of the newest stack that `fairlead up` runs here."""
    url, secret = asked.redis or settings.redis_url, settings.hash_secret or ""
    if not url:
        for stack in running_stacks():
            if stack.redis:
                return stack.redis, secret or stack.hash_secret
    return url, secret


async def _stats(asked: IndexOptions, link: RedisLink, known: list[str], clock: Clock, limits: Limits) -> int:
    from fairlead_cli.index.stats import build_stats, render_stats

    wanted = known if asked.model is None else [choose_model(asked.model, known)]
    found = [build_stats(await take_snapshot(link, key, clock, limits)) for key in wanted]
    if asked.output == "json":
        print(msgspec.json.format(msgspec.json.encode({"models": found}), indent=2).decode())
    elif not found:
        print("this Redis has no index: does an indexer run, and is it this Redis that it writes to?", file=sys.stderr)
    else:
        stdout_console().print(render_stats(found))
    return OK if found and all(one.is_healthy for one in found) else PROBLEM


async def _match(
    asked: IndexOptions, link: RedisLink, picture: IndexSnapshot, tokens: list[int], secret: bytes, limits: Limits
) -> int:
    from fairlead_cli.index.prefix_match import TokenPrompt, check_secret, match_prompt, read_ages, to_json

    check_secret(picture, secret)
    answer, last = match_prompt(picture, TokenPrompt(tokens, asked.adapter, asked.salt), secret)
    print(to_json(answer, await read_ages(link, picture, last, limits)).decode())
    if picture.lease is None:
        since = (
            ""
            if picture.last_written is None
            else f" since {format_duration(max(0.0, picture.wall - picture.last_written))}"
        )
        print(f"fairlead index: nobody writes this index{since}; the answer is as old", file=sys.stderr)
    return OK


async def _watch(asked: IndexOptions, link: RedisLink, key: str, limits: Limits) -> int:
    from fairlead_cli.index.change_stream import ChangeBatch, ChangeFilter, follow_changes, format_batch

    def show(found: ChangeBatch) -> None:
        text = format_batch(found) if asked.output == "table" else msgspec.json.encode(found).decode()
        print(text, flush=True)

    await follow_changes(link, key, ChangeFilter(asked.instance, asked.kind), limits, show, asked.count)
    return OK


async def _verify(
    asked: IndexOptions, link: RedisLink, picture: IndexSnapshot, secret: bytes, clock: Clock, limits: Limits
) -> int:
    from fairlead_cli.index.verification import render_lines, verify

    found = await verify(link, picture, secret, clock, limits, asked.instance)
    if asked.output == "json":
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        print("\n".join(render_lines(found)))
    return PROBLEM if found.differences else OK
