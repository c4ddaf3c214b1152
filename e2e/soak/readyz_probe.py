"""A client apart from the load: its waits for an answer that needs no engine, in its own process.

``python readyz_probe.py HOST PORT`` requests /readyz fifty times a second until its input ends,
then prints its waits as one line of JSON.
"""

import json
import selectors
import socket
import sys
import time

_PAUSE_SECONDS = 0.02
_REQUEST = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n"


def main(host: str, port: int) -> None:
    """Sends requests until stopped."""
    waits: list[float] = []
    told = selectors.DefaultSelector()
    told.register(sys.stdin, selectors.EVENT_READ)
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while not told.select(_PAUSE_SECONDS):
        begun = time.perf_counter()
        connection.sendall(_REQUEST)
        got = b""
        while b"}" not in got:
            part = connection.recv(65_536)
            if not part:
                raise SystemExit("the gateway closed a good connection")
            got += part
        waits.append(time.perf_counter() - begun)
    waits.sort()
    count = len(waits)
    shown = (
        {"count": count, "p50": waits[count // 2], "p99": waits[int(count * 0.99)], "max": waits[-1]}
        if count
        else {"count": 0}
    )
    print(json.dumps({name: round(value, 5) for name, value in shown.items()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
