"""``fairlead index``, from its arguments to its exit code."""

import asyncio
import os
import sys

import msgspec

from fairlead.clock import Clock, SystemClock
from fairlead.limits import Limits
from fairlead.settings import CliSettings, read
from fairlead.units import duration
from fairlead_cli.errors import BadIndex, NoIndex
from fairlead_cli.indexing.asked import Asked, token_ids
from fairlead_cli.indexing.picture import Picture, look
from fairlead_cli.indexing.reaching import chosen, models, reached
from fairlead_cli.local.rundir import running_stacks
from fairlead_cli.paper import paper
from fairlead_kvstore.redis import RedisLink

OK, PROBLEM, UNREACHABLE = 0, 1, 3


def run(asked: Asked) -> int:
    """Ask, print, judge. Raises BadInput for wrong usage and for a model that is not there."""
    asked.check()
    try:
        return asyncio.run(_run(asked, read(CliSettings, os.environ), SystemClock(), Limits()))
    except NoIndex as error:
        print(f"fairlead index: {error}", file=sys.stderr)
        return UNREACHABLE
    except BadIndex as error:
        print(f"fairlead index: {error}", file=sys.stderr)
        return PROBLEM


async def _run(asked: Asked, settings: CliSettings, clock: Clock, limits: Limits) -> int:
    url, words = _place(asked, settings)
    secret = words.encode()
    prompt = token_ids(asked.tokens, limits) if asked.tokens is not None else []
    async with reached(url, clock, limits) as link:
        known = await models(link, limits)
        if asked.action == "stats":
            return await _stats(asked, link, known, clock, limits)
        key = chosen(asked.model, known)
        if asked.action == "watch":
            return await _watch(asked, link, key, limits)
        picture = await look(link, key, clock, limits)
        if asked.action == "verify":
            return await _verify(asked, link, picture, secret, clock, limits)
        return await _match(asked, link, picture, prompt, secret, limits)


def _place(asked: Asked, settings: CliSettings) -> tuple[str | None, str]:
    """The Redis, and the secret of its hashes: as named, else those of the newest stack that `fairlead up` runs here."""
    url, secret = asked.redis or settings.redis_url, settings.hash_secret or ""
    if not url:
        for stack in running_stacks():
            if stack.redis:
                return stack.redis, secret or stack.hash_secret
    return url, secret


async def _stats(asked: Asked, link: RedisLink, known: list[str], clock: Clock, limits: Limits) -> int:
    from fairlead_cli.indexing.stats import show, stats

    wanted = known if asked.model is None else [chosen(asked.model, known)]
    found = [stats(await look(link, key, clock, limits)) for key in wanted]
    if asked.output == "json":
        print(msgspec.json.format(msgspec.json.encode({"models": found}), indent=2).decode())
    elif not found:
        print("this Redis has no index: does an indexer run, and is it this Redis that it writes to?", file=sys.stderr)
    else:
        paper().print(show(found))
    return OK if found and all(one.well for one in found) else PROBLEM


async def _match(
    asked: Asked, link: RedisLink, picture: Picture, tokens: list[int], secret: bytes, limits: Limits
) -> int:
    from fairlead_cli.indexing.matching import Prompt, ages, as_json, check_secret, matched

    check_secret(picture, secret)
    answer, last = matched(picture, Prompt(tokens, asked.adapter, asked.salt), secret)
    print(as_json(answer, await ages(link, picture, last, limits)).decode())
    if picture.lease is None:
        since = "" if picture.written is None else f" since {duration(max(0.0, picture.wall - picture.written))}"
        print(f"fairlead index: nobody writes this index{since}; the answer is as old", file=sys.stderr)
    return OK


async def _watch(asked: Asked, link: RedisLink, key: str, limits: Limits) -> int:
    from fairlead_cli.indexing.watching import Batch, Wanted, line, watch

    def show(found: Batch) -> None:
        text = line(found) if asked.output == "table" else msgspec.json.encode(found).decode()
        print(text, flush=True)

    await watch(link, key, Wanted(asked.instance, asked.kind), limits, show, asked.count)
    return OK


async def _verify(asked: Asked, link: RedisLink, picture: Picture, secret: bytes, clock: Clock, limits: Limits) -> int:
    from fairlead_cli.indexing.verifying import lines, verify

    found = await verify(link, picture, secret, clock, limits, asked.instance)
    if asked.output == "json":
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        print("\n".join(lines(found)))
    return PROBLEM if found.differences else OK
