"""Engines' KV events over real sockets: ``line`` follows one engine, ``zmq_link`` holds its connection, ``turns`` shares the loop."""
