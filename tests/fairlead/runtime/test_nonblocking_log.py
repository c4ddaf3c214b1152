"""A log without a reader blocks nothing: lines wait in bounded memory, and losses are reported."""

import asyncio
import logging
import os
import signal
import threading
import warnings
from functools import partial
from pathlib import Path

import pytest

from fairlead.errors import SettingsError
from fairlead.fleet.file import write_fleet_file
from fairlead.runtime import nonblocking_log
from fairlead.runtime.nonblocking_log import NonBlockingHandler, NonBlockingWriter
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of
from fairlead_testing.http.raw_client import request
from fairlead_testing.waiting import wait_until

few_lines = partial(NonBlockingWriter, max_lines=3, max_line_bytes=20)


class Sink:
    """Takes bytes when it may, three at a time."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.got = b""

    def put(self, _: int, data: bytes) -> int:
        self.begun.set()
        self.open.wait()
        self.got += data[:3]
        return len(data[:3])


def test_excess_lines_are_dropped_and_counted() -> None:
    sink = Sink()
    lines = few_lines(2, sink.put)
    lines.write(b"one\n")
    sink.begun.wait()
    for line in (b"two\n", b"three\n", b"four\n", b"five\n"):
        lines.write(line)
    assert lines.dropped == 2
    assert "2 lines were dropped" in lines.warnings()[0]
    assert not lines.flush(0.0)
    sink.open.set()
    assert lines.flush(30.0)
    notice = b"2 log lines were dropped here: the sink did not take them\n"
    assert sink.got == b"one\n" + notice + b"two\nthree\n"
    lines.write(b"six\n")
    assert lines.flush(30.0)
    assert sink.got.endswith(b"three\nsix\n")


def test_long_lines_are_cut_and_a_closed_sink_drops_lines() -> None:
    sink = Sink()
    sink.open.set()
    lines = few_lines(2, sink.put)
    lines.write(b"x" * 100 + b"\n")
    assert lines.flush(30.0)
    assert sink.got == b"x" * 20 + b" [cut]\n"

    def gone(_: int, data: bytes) -> int:
        raise BrokenPipeError

    lines = few_lines(2, gone)
    lines.write(b"a\n")
    assert lines.flush(30.0)
    assert lines.dropped == 1


def test_nonblocking_sink_is_retried() -> None:
    refusals = iter([True, True, False])
    got = b""

    def busy(_: int, data: bytes) -> int:
        nonlocal got
        if next(refusals, False):
            raise BlockingIOError
        got += data
        return len(data)

    lines = NonBlockingWriter(2, busy)
    lines.write(b"a\n")
    assert lines.flush(30.0)
    assert (got, lines.dropped) == (b"a\n", 0)


def test_forked_process_writes_its_own_lines() -> None:
    reading, writing = os.pipe()
    lines = NonBlockingWriter(writing)
    lines.write(b"parent\n")
    assert lines.flush(30.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons: this process has threads
        child = os.fork()
    if not child:
        lines.write(b"child\n")
        os._exit(0 if lines.flush(30.0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(writing)
    with open(reading, "rb") as reader:
        assert reader.read() == b"parent\nchild\n"


def test_unformattable_record_becomes_one_line() -> None:
    sink = Sink()
    sink.open.set()
    lines = NonBlockingWriter(2, sink.put)
    handler = NonBlockingHandler(lines)
    handler.handle(logging.LogRecord("some.name", logging.INFO, "x", 1, "%d %d", ("secret",), None))
    assert lines.flush(30.0)
    assert sink.got == b"a log line of some.name could not be formatted\n"


async def test_loop_and_interpreter_errors_are_logged_without_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(nonblocking_log.on_loop_exception)

    def defect() -> None:
        raise ValueError("a prompt")

    loop.call_soon(defect)
    await asyncio.sleep(0)
    assert "ValueError" in caplog.text
    assert "in defect" in caplog.text
    assert "a prompt" not in caplog.text.replace('raise ValueError("a prompt")', "")


def test_invalid_level_is_named() -> None:
    with pytest.raises(SettingsError, match="FAIRLEAD_LOG_LEVEL"):
        nonblocking_log.start_logging("loud")


async def test_full_unread_pipe_blocks_no_request_and_no_drain(tmp_path: Path) -> None:
    """Each change of the fleet file logs two lines. Standard error is full before the process
    starts.
    """
    path = tmp_path / "fleet.yaml"
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4_096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    async with scripted_engine() as engine:
        write_fleet_file(path, fleet_of([engine.url]))
        environ = {"FAIRLEAD_LOG_LEVEL": "debug", "FAIRLEAD_NO_SUCH_SETTING": "1"}
        try:
            async with gateway_process(path, environ=environ, stderr=writing) as gateway:
                os.close(writing)
                for number in range(3):
                    path.write_text("models: [" + "{" * number)

                    async def complained() -> bool:
                        return b"cannot be used" in (await gateway.get("/readyz")).body

                    await wait_until(complained)
                    assert (await request(gateway.url, GOOD)).status == 200
                gateway.process.send_signal(signal.SIGTERM)
                assert await gateway.wait() == 0
        finally:
            os.close(reading)
