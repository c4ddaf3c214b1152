"""W3C trace context, read as strictly as the specification says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.http import trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RIGHT = f"00-{TRACE}-{SPAN}-01"


def fields(*parents: str, state: str | list[str] = "") -> list[tuple[bytes, bytes]]:
    states = [state] if isinstance(state, str) and state else list(state)
    return [
        (b"host", b"x"),
        *((b"traceparent", parent.encode("latin-1")) for parent in parents),
        *((b"tracestate", state.encode("latin-1")) for state in states),
    ]


def test_a_right_one_is_read_and_passed_on_as_it_came() -> None:
    context = trace_context.extract_context(fields(RIGHT, state="vendor=x,other=y"))
    assert context == trace_context.TraceContext(TRACE, SPAN, 1, "vendor=x,other=y")
    assert context.is_sampled
    assert trace_context.forwarded_header(fields(RIGHT, state="vendor=x")) == (
        f"traceparent: {RIGHT}\r\ntracestate: vendor=x\r\n".encode()
    )


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_the_first_bit_of_the_flags_says_sampled(flags: str, sampled: bool) -> None:
    assert trace_context.extract_context(fields(f"00-{TRACE}-{SPAN}-{flags}")).is_sampled is sampled


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "garbage",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01 x",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.x",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00_{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"{RIGHT},{RIGHT}",
    ],
)
def test_a_malformed_one_is_dropped_and_its_state_with_it(wrong: str) -> None:
    given = fields(wrong, state="vendor=x")
    assert trace_context.extract_context(given) is None
    assert trace_context.forwarded_header(given) == b""


def test_two_of_them_are_none() -> None:
    assert trace_context.extract_context(fields(RIGHT, RIGHT)) is None
    assert trace_context.forwarded_header(fields(RIGHT, RIGHT)) == b""


def test_a_state_without_a_parent_is_dropped() -> None:
    assert trace_context.forwarded_header(fields(state="vendor=x")) == b""


@pytest.mark.parametrize(
    "version", [f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-later.field"]
)
def test_a_later_schema_is_read_as_far_as_known(version: str) -> None:
    context = trace_context.extract_context(fields(version))
    assert (context.trace_id, context.span_id, context.is_sampled) == (TRACE, SPAN, True)


def test_blanks_around_it_are_no_part_of_it() -> None:
    assert trace_context.extract_context(fields(f" {RIGHT}\t")) is not None


def test_several_states_are_one_list_and_a_long_one_is_left_out() -> None:
    assert trace_context.extract_context(fields(RIGHT, state=["a=1", "", "b=2"])).state == "a=1,b=2"
    long = trace_context.extract_context(fields(RIGHT, state=[f"k{n}={'v' * 200}" for n in range(30)]))
    assert long.state == ""


@pytest.mark.parametrize(("flags", "shown"), [(0, "01"), (1, "01"), (2, "03"), (3, "03"), (0xFF, "03")])
def test_an_own_trace_is_sampled_and_has_no_unknown_flag(flags: int, shown: str) -> None:
    assert trace_context.sampled_header(TRACE, SPAN, flags, "") == f"traceparent: 00-{TRACE}-{SPAN}-{shown}\r\n"
    assert trace_context.sampled_header(TRACE, SPAN, flags, "a=1").endswith("\r\ntracestate: a=1\r\n")


@pytest.mark.property
@given(st.binary(max_size=80))
def test_whatever_comes_is_right_or_dropped_and_never_an_exception(value: bytes) -> None:
    context = trace_context.extract_context([(b"traceparent", value)])
    text = trace_context.forwarded_header([(b"traceparent", value)])
    assert (context is None) == (text == b"")
    if context is not None:
        header: Any = trace_context.sampled_header(context.trace_id, context.span_id, context.flags, "")
        assert trace_context.extract_context([(b"traceparent", header[13:-2].encode())]) is not None
