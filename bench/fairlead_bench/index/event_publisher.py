"""A process of simulated engines that publish on ZMQ as vLLM does, at a given rate, and answer
replays.

    python -m fairlead_bench.index.event_publisher KIND BLOCKS ENGINES RATE SEED

Prints one line of JSON with its addresses, sends after a line on standard input, says ``sent``, and
goes on answering until standard input ends. BLOCKS and RATE (a second) are of all engines together.
"""

import json
import sys
import time
from collections import deque

import zmq

from fairlead_bench.index.event_streams import payloads

REPLAY_BATCHES = 10_000
END_OF_REPLAY = [b"", b"", b"\xff" * 8, b""]


class PublishingEngine:
    """One publishing engine."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.publisher = context.socket(zmq.PUB)
        self.publisher.setsockopt(zmq.SNDHWM, 0)
        self.router = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.SNDHWM, 0)
        self.events, self.replay = (_bind(one) for one in (self.publisher, self.router))
        self.number = 0
        self.kept: deque[tuple[bytes, bytes]] = deque(maxlen=REPLAY_BATCHES)

    def send(self, payload: bytes) -> None:
        """Sends one batch."""
        number = self.number.to_bytes(8, "big")
        self.publisher.send_multipart([b"kv", number, payload])
        self.kept.append((number, payload))
        self.number += 1

    def answer(self) -> None:
        """Answers all pending replay requests."""
        while self.router.poll(0):
            peer, _, start = self.router.recv_multipart()
            for number, payload in self.kept:
                if number >= start:
                    self.router.send_multipart([peer, b"", b"kv", number, payload])
            self.router.send_multipart([peer, *END_OF_REPLAY])


def _bind(socket: "zmq.Socket[bytes]") -> str:
    socket.bind("tcp://127.0.0.1:0")
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def main() -> None:
    """Publishes until standard input ends."""
    kind, blocks, count, rate, seed = sys.argv[1], *map(int, sys.argv[2:6])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    engines = [PublishingEngine(context) for _ in range(count)]
    print(json.dumps([{"events": engine.events, "replay": engine.replay} for engine in engines]), flush=True)
    _wait(engines)
    left = [(one, payloads(kind, blocks // count, seed + number)) for number, one in enumerate(engines)]
    begun, sent = time.monotonic(), 0
    while left:
        for engine in engines:
            engine.answer()  # answers replays while the other engines go on
        for pair in tuple(left):
            payload, some = next(pair[1], (b"", 0))
            if payload:
                pair[0].send(payload)
                sent += some
            else:
                left.remove(pair)
        ahead = sent / rate - (time.monotonic() - begun)
        if ahead > 0.0:
            time.sleep(ahead)
    print(json.dumps({"sent": sent}), flush=True)
    _wait(engines)


def _wait(engines: list[PublishingEngine]) -> None:
    """Answers replay requests until standard input has a line or ends."""
    poller = zmq.Poller()
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    for engine in engines:
        poller.register(engine.router, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        for engine in engines:
            engine.answer()
        if sys.stdin.fileno() in ready:
            sys.stdin.readline()
            return


if __name__ == "__main__":
    main()
