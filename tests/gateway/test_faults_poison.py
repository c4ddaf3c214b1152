"""Which deaths of engines speak against a request, and which do not."""

import asyncio

from fairlead.testing.engine import Call, Hangup, honest, scripted_engine, token
from fairlead.testing.raw_http import ask
from fairlead.testing.waiting import until
from fairlead_gateway.testing import Running, fleet_of, run, running_gateway, with_engines

PLAIN = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = PLAIN | {"stream": True}
GREEDY = STREAM | {"temperature": 0}


def test_a_popular_prompt_on_two_engines_that_die_together_is_served_by_the_next() -> None:
    met: list[Call] = []
    die = asyncio.Event()

    async def script(call: Call) -> None:
        met.append(call)
        if len(met) > 2:
            await honest(call)
            return
        await call.begin()
        await call.event(token("a"))
        await die.wait()
        raise Hangup

    async def main() -> None:
        async with scripted_engine(script) as one, scripted_engine(script) as two:  # noqa: SIM117
            async with running_gateway(fleet_of([one.url, two.url], preset="round-robin")) as running:
                copies = [asyncio.create_task(ask(running.url, STREAM)) for _ in range(2)]
                await until(lambda: len(met) == 2)
                die.set()
                for copy in copies:
                    assert '"code":"stream_cut"' in (await copy).events[-1]
                assert (len(one.calls), len(two.calls)) == (1, 1)
                assert (await ask(running.url, STREAM)).events[-1] == "[DONE]"
                assert len(running.gateway.quarantine) == 0

    run(main())


def test_a_copy_that_was_sent_before_and_is_answered_clears_it() -> None:
    met: list[Call] = []
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        met.append(call)
        if b"warm" in call.body:
            await honest(call)
        elif len(met) == 1:
            await go_on.wait()
            await honest(call)
        elif len(met) == 2:
            await call.begin()  # on a connection that has served before, silence would be nobody's death
            raise Hangup
        else:
            await call.plain({"error": {"message": "broken"}}, "500 Internal Server Error")

    async def main() -> None:
        async with scripted_engine(script) as one, scripted_engine(script) as two:  # noqa: SIM117
            async with running_gateway(fleet_of([one.url, two.url], preset="round-robin")) as running:
                for _ in range(2):
                    await ask(running.url, PLAIN | {"user": "warm"})
                met.clear()
                first = asyncio.create_task(ask(running.url, PLAIN))
                await until(lambda: len(met) == 1)
                assert (await ask(running.url, PLAIN)).status == 502
                assert len(running.gateway.quarantine) == 1
                go_on.set()
                assert (await first).status == 200
                assert len(running.gateway.quarantine) == 0

    run(main())


def test_an_engine_that_refuses_it_proves_nothing() -> None:
    met: list[Call] = []

    async def script(call: Call) -> None:
        met.append(call)
        if len(met) == 1:
            raise Hangup
        await call.plain({"error": {"message": "no"}}, "400 Bad Request")

    async def main() -> None:
        async with scripted_engine(script) as one, scripted_engine(script) as two:  # noqa: SIM117
            async with running_gateway(fleet_of([one.url, two.url])) as running:
                assert (await ask(running.url, PLAIN)).status == 400
                assert len(running.gateway.quarantine) == 1

    run(main())


def test_a_retry_that_dies_in_its_stream_is_not_continued_on_a_third_engine() -> None:
    met: list[Call] = []

    async def script(call: Call) -> None:
        met.append(call)
        if len(met) > 1:
            await call.begin()
            await call.event({"id": "x", **token("a")})
        raise Hangup

    async def use(running: Running) -> None:
        assert '"code":"stream_cut"' in (await ask(running.url, GREEDY)).events[-1]
        assert len(met) == 2
        assert (await ask(running.url, GREEDY)).status == 422
        assert len(met) == 2

    run(with_engines([script] * 3, use))


def test_an_engine_that_dies_of_the_rest_of_a_stream_counts_too() -> None:
    met: list[Call] = []

    async def script(call: Call) -> None:
        met.append(call)
        await call.begin()
        await call.event({"id": "x", **token("a")})
        raise Hangup

    async def use(running: Running) -> None:
        assert '"code":"stream_cut"' in (await ask(running.url, GREEDY)).events[-1]
        assert (await ask(running.url, GREEDY)).status == 422
        assert len(met) == 2

    run(with_engines([script] * 3, use))


def test_a_copy_whose_engine_dies_when_two_have_died_already_goes_to_no_other() -> None:
    met: list[Call] = []
    die = asyncio.Event()

    async def script(call: Call) -> None:
        met.append(call)
        if len(met) == 1:
            await die.wait()
        raise Hangup

    async def main() -> None:
        async with (
            scripted_engine(script) as one,
            scripted_engine(script) as two,
            scripted_engine(script) as three,
            running_gateway(fleet_of([one.url, two.url, three.url], preset="round-robin")) as running,
        ):
            first = asyncio.create_task(ask(running.url, PLAIN))
            await until(lambda: len(met) == 1)
            assert (await ask(running.url, PLAIN)).error["code"] == "engines_broke_off"
            die.set()
            assert (await first).error["code"] == "quarantined"
            assert len(met) == 3

    run(main())
