"""A port that closes resets nobody whom the kernel has let in already."""

import socket

from fairlead.testing.engine import scripted_engine
from fairlead.testing.raw_http import Connection, post
from fairlead_gateway.ports import Address
from fairlead_gateway.server import Server
from fairlead_gateway.testing import fleet_of, run, running_gateway

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def test_connections_that_wait_when_the_port_closes_are_answered() -> None:
    async def main() -> None:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
            public = Address("127.0.0.1", 0).bind(shared=True)
            address = public.getsockname()
            server = Server(running.gateway, public)
            await server.start()
            knocked = [socket.create_connection(address) for _ in range(5)]  # the loop gets no turn to accept them
            server._let_in()
            assert server._server is not None
            server._server.close()
            for one in knocked:
                one.setblocking(False)
                connection = await Connection.over(one)
                await connection.send(post(GOOD))
                assert (await connection.answer()).status == 200
                await connection.close()
            running.gateway.lag.stop()

    run(main())
