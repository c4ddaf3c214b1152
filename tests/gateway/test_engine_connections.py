"""The connections to engines: which are used again, which are dropped, and what a late, long or second answer does."""

import asyncio
import contextlib
import socket

import pytest

from fairlead.limits import Limits
from fairlead.testing.engine import Call, Hangup, ScriptedEngine, event, honest, scripted_engine, token, usage
from fairlead.testing.raw_http import Connection, ask, post, send
from fairlead.testing.waiting import until
from fairlead_gateway.reach import Reach
from fairlead_gateway.testing import KEY, Running, fleet_of, run, running_gateway, with_engines
from fairlead_gateway.upstream import Broken, Pool

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True}


def test_an_engine_that_never_answers_is_given_up_at_its_deadline() -> None:
    async def script(call: Call) -> None:
        await call.gone()

    async def use(running: Running) -> None:
        answer = await ask(running.url, GOOD)
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")

    run(with_engines([script], use, Limits(first_token_seconds=0.2)))


@pytest.mark.parametrize("body", [GOOD, STREAM])
def test_an_engine_that_says_nothing_and_listens_no_more_is_left_for_another(body: dict[str, object]) -> None:
    async def script(call: Call) -> None:
        for one in engines:
            if one.calls and one.server is not None and one.calls[0] is call:
                one.server.close()
        if sum(len(one.calls) for one in engines) == 1:
            await call.gone()
        await honest(call)

    engines: list[ScriptedEngine] = []

    async def main() -> None:
        async with scripted_engine(script) as one, scripted_engine(script) as two:
            engines.extend((one, two))
            limits = Limits(mute_seconds=0.02)
            async with running_gateway(fleet_of([one.url, two.url]), limits) as running:
                answer = await ask(running.url, body)
                assert (answer.status, answer.fields["x-fairlead-reason"]) == (200, "retry-1")
                assert running.gateway.telemetry.models[KEY].retries_by_reason == {"gone": 1}

    run(main())


def test_an_engine_that_says_nothing_and_listens_is_waited_for() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        await call.event(token("a"))
        await until(lambda: engine.connections > 3)  # it is knocked at again and again
        await call.event(token("b"))
        await call.finish()

    async def main() -> None:
        nonlocal engine
        async with scripted_engine(script) as engine:  # noqa: SIM117
            async with running_gateway(fleet_of([engine.url]), Limits(mute_seconds=0.02)) as running:
                answer = await ask(running.url, STREAM)
                assert answer.events[-1] == "[DONE]"
                assert len(engine.calls) == 1

    engine = ScriptedEngine()
    run(main())


class Listener:
    """What a connection tells whoever asked."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Not looked at."""

    def body(self, pieces: list[bytes], complete: bool) -> None:
        """Not looked at."""

    def broken(self, error: Broken) -> None:
        """Why nothing more comes."""
        self.ended.append(error.why)

    def silent(self) -> float:
        """For ever."""
        return 60.0


def test_one_knock_answers_all_that_wait_and_not_while_the_engine_speaks_to_anybody() -> None:
    async def script(call: Call) -> None:
        await call.gone()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = Pool(Limits(), loop, Reach({}, loop.time))
        async with scripted_engine(script) as engine:
            listeners = [Listener(), Listener()]
            connections = [await pool.connect(engine.url) for _ in listeners]
            for connection, listener in zip(connections, listeners, strict=True):
                connection.ask([b"GET / HTTP/1.1\r\n\r\n"], listener, 60.0)
            await until(lambda: len(engine.calls) == 2)

            def knock() -> None:
                for connection in connections:
                    pool.knock(connection)

            knock()
            await until(lambda: not pool._knocks)
            await until(lambda: engine.connections == 3)
            assert engine.server is not None
            engine.server.close()
            knock()
            pool.peer(engine.url).heard += 1
            await until(lambda: not pool._knocks)
            assert [one.ended for one in listeners] == [[], []]
            connections[1].pause(True)
            knock()
            await until(lambda: not pool._knocks)
            assert [one.ended for one in listeners] == [["gone"], []]
            connections[1].abort()
            pool.close()

    run(main())


def test_an_answer_that_ends_after_the_gateway_closed_leaves_no_connection() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = Pool(Limits(), loop, Reach({}, loop.time))
        async with scripted_engine() as engine:
            connection = await pool.connect(engine.url)
            pool.close()
            pool.park(connection)
            assert not connection.usable
            assert pool.idle(engine.url) is None
            await until(lambda: engine.open == 0)

    run(main())


def test_a_stale_connection_is_replaced_without_a_word() -> None:
    seen: dict[int, int] = {}

    async def script(call: Call) -> None:
        number = seen[id(call.writer)] = seen.get(id(call.writer), 0) + 1
        if number > 1:
            raise Hangup
        await honest(call)

    async def use(running: Running) -> None:
        for _ in range(5):
            answer = await ask(running.url, GOOD)
            assert answer.status == 200
            assert not answer.fields["x-fairlead-reason"].startswith("retry")

    run(with_engines([script], use))


def test_idle_engine_connections_are_dropped_before_the_engine_does_it() -> None:
    async def main() -> None:
        limits = Limits(upstream_idle_seconds=0.1)
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
            assert (await ask(running.url, GOOD)).status == 200
            while engine.open:  # noqa: ASYNC110 - the engine is told by TCP
                await asyncio.sleep(0.01)
            assert (await ask(running.url, GOOD)).status == 200
            assert engine.connections == 2

    run(main())


def test_a_second_answer_that_nobody_asked_for_reaches_nobody() -> None:
    async def script(call: Call) -> None:
        await call.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n{"a":1}' * 2)

    async def main() -> None:
        async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
            data = post(GOOD, close=False) + post(GOOD)
            assert [answer.json for answer in await send(running.url, data)] == [{"a": 1}, {"a": 1}]
            assert len(engine.calls) == 2

    run(main())


@pytest.mark.parametrize("complete", [True, False])
def test_a_long_plain_answer_passes_as_it_comes_and_cannot_look_complete_when_it_is_not(complete: bool) -> None:
    size = 3_000_000
    body = b'{"data":"' + b"x" * size + b'","usage":{"prompt_tokens":5}}'

    async def script(call: Call) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await call.send(head.encode() + (body if complete else body[:-1_000]))
        if not complete:
            raise Hangup

    async def use(running: Running) -> None:
        connection = await Connection.to(running.url)
        await connection.send(post(GOOD))
        if complete:
            assert (await connection.answer()).body == body
        else:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await connection.answer()
        await connection.close()

    run(with_engines([script], use))


def test_what_an_engine_says_after_done_is_not_passed_on() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        await call.chunk(event(token("a")) + event(usage(1, 0, 1)) + event("[DONE]") + event(token("late")))
        await call.event(token("later"))
        await call.chunk(b"")

    async def use(running: Running) -> None:
        answer = await ask(running.url, STREAM)
        assert answer.complete
        assert [answer.events[0], answer.events[-1]] == [event(token("a"))[6:-2].decode(), "[DONE]"]
        assert len(answer.events) == 2

    run(with_engines([script], use))


def test_an_engine_that_takes_no_connection_in_time_is_passed_over() -> None:
    """A listening socket whose queue is full drops what knocks: the connect neither succeeds nor fails."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
            address = full.getsockname()
            for _ in range(4):
                knocking = waiting.enter_context(socket.socket())
                knocking.setblocking(False)
                knocking.connect_ex(address)
            limits = Limits(connect_seconds=0.3)
            async with scripted_engine() as engine:
                urls = [f"http://127.0.0.1:{address[1]}", engine.url]
                async with running_gateway(fleet_of(urls, preset="round-robin"), limits) as running:
                    answers = [await ask(running.url, GOOD) for _ in range(2)]
                    assert {answer.status for answer in answers} == {200}
                    assert "retry-1" in [answer.fields["x-fairlead-reason"] for answer in answers]
                    retried = next(one for one in running.gateway.decisions.last(2) if one.last.attempt == 2)
                    assert retried.last.decision.reason.startswith("connect-timeout")

    run(main())


@pytest.mark.parametrize("param", ["model", None])
def test_an_engine_that_does_not_know_the_model_is_passed_over_whichever_way_it_says_so(param: str | None) -> None:
    error = {"message": "The model `tiny` does not exist.", "type": "NotFoundError", "param": param, "code": 404}

    async def wrong(call: Call) -> None:
        await call.plain({"error": error}, "404 Not Found")

    async def right(call: Call) -> None:
        await call.plain({"object": "list", "data": []})

    async def main() -> None:
        async with (
            scripted_engine(wrong) as one,
            scripted_engine(right) as other,
            running_gateway(fleet_of([one.url, other.url])) as running,
        ):
            for number in range(6):
                asked = {"model": "tiny", "input": f"{number} " * 300}
                assert (await ask(running.url, asked, path="/v1/embeddings")).status == 200
            assert one.calls

    run(main())


def test_the_connection_of_a_stream_that_ended_with_an_error_event_asks_again() -> None:
    async def script(call: Call) -> None:
        if not call.json.get("stream"):
            await honest(call)
            return
        await call.begin()
        await call.event(token("a"))
        raise Hangup

    async def main() -> None:
        async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
            connection = await Connection.to(running.url)
            await connection.send(post(STREAM, close=False))
            answer = await connection.answer()
            assert answer.complete
            assert '"code":"stream_cut"' in answer.events[-1]
            await connection.send(post(GOOD))
            assert (await connection.answer()).status == 200
            await connection.close()

    run(main())
