"""`fairlead chat` against a small server whose answers are written down."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead_cli.chat.command import AnswerError, Conversation, Terminal, run_dialogue
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
HEADERS = {
    "content-type": "text/event-stream",
    "x-request-id": "req-1",
    "x-fairlead-instance": "main-3/40001/0",
    "x-fairlead-reason": "affinity",
}


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(*pieces: str) -> list[bytes]:
    return [event(choices=[{"index": 0, "delta": {"role": "assistant", "content": piece}}]) for piece in pieces]


def streams(*pieces: str) -> CannedResponse:
    return CannedResponse(
        [b": a comment\n\n", *said(*pieces), event(choices=[], usage={}), b"data: [DONE]\n\n"], headers=HEADERS
    )


def server(answer: CannedResponse, *models: str) -> CannedServer:
    cards = json.dumps({"object": "list", "data": [{"id": name} for name in models or ("tiny",)]}).encode()
    return CannedServer({CHAT: answer, MODELS: CannedResponse([cards])})


def test_answer_is_streamed_and_its_request_id_known() -> None:
    with server(streams("The ", "sky", ".")) as gateway, Conversation(gateway.url, "tiny") as conversation:
        assert list(conversation.send("Why?")) == ["The ", "sky", "."]
        assert conversation.last_answer.request_id == "req-1"
        assert conversation.last_answer.instance == "main-3/40001/0"
        assert conversation.last_answer.ttft_seconds is not None


def test_history_is_sent_until_reset() -> None:
    with server(streams("yes")) as gateway:
        with Conversation(gateway.url + "/v1", "tiny", system="Be brief.", max_tokens=5) as conversation:
            list(conversation.send("one"))
            list(conversation.send("two"))
            conversation.reset()
            list(conversation.send("three"))
        bodies = [json.loads(asked.body) for asked in gateway.requests]
    assert [message["content"] for message in bodies[1]["messages"]] == ["Be brief.", "one", "yes", "two"]
    assert [message["content"] for message in bodies[2]["messages"]] == ["Be brief.", "three"]
    assert bodies[0]["max_tokens"] == 5
    assert bodies[0]["stream"] is True


def test_only_model_is_the_default() -> None:
    with server(streams("x")) as gateway, Conversation(gateway.url, None) as conversation:
        assert conversation.model == "tiny"


def test_several_models_require_a_name() -> None:
    with server(streams("x"), "a", "b") as gateway, pytest.raises(AnswerError, match="there are: a, b"):
        Conversation(gateway.url, None)


def test_refusal_shows_the_gateways_message() -> None:
    body = json.dumps({"error": {"message": "no model 'tinny'", "type": "x", "hint": "did you mean tiny?"}}).encode()
    with (
        server(CannedResponse([body], 404, HEADERS)) as gateway,
        Conversation(gateway.url, "tinny") as conversation,
        pytest.raises(AnswerError, match=r"no model 'tinny' \[404\] \(did you mean tiny\?\)"),
    ):
        list(conversation.send("?"))


def test_error_event_in_the_stream_is_raised() -> None:
    broken = CannedResponse([*said("The "), event(error={"message": "the engine died", "type": "x"})], headers=HEADERS)
    with server(broken) as gateway, Conversation(gateway.url, "tiny") as conversation:
        answer = conversation.send("?")
        assert next(answer) == "The "
        with pytest.raises(AnswerError, match="the engine died"):
            next(answer)


@pytest.mark.parametrize(
    "answer",
    [
        CannedResponse(said("The "), headers=HEADERS),
        CannedResponse(said("The "), headers=HEADERS, cut=True),
        CannedResponse([b"data: {not json\n\n"], headers=HEADERS),
        CannedResponse([b"<html>"], 502),
    ],
    ids=["no end", "cut", "no json", "no gateway"],
)
def test_stream_without_done_is_an_error(answer: CannedResponse) -> None:
    with server(answer) as gateway, Conversation(gateway.url, "tiny") as conversation, pytest.raises(AnswerError):
        list(conversation.send("?"))


def test_unreachable_gateway_is_reported() -> None:
    with pytest.raises(StackUnreachable, match="does not answer"):
        Conversation("http://127.0.0.1:1", None)


def dialogue(
    conversation: Conversation, *lines: str, why: Callable[[str], list[str]] | None = None
) -> tuple[str, list[str]]:
    """Everything written and every remark of a dialogue."""
    waiting, written, remarks = list(lines), [], []

    def read() -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    terminal = Terminal(read, written.append, remarks.append)
    assert run_dialogue(conversation, terminal, why or (lambda request_id: [f"why {request_id}"])) == 0
    return "".join(written), remarks


def test_dialogue_streams_answers_and_names_the_instance() -> None:
    with server(streams("The ", "sky")) as gateway, Conversation(gateway.url, "tiny") as conversation:
        written, remarks = dialogue(conversation, "Why?", "")
    assert written == "The sky\n"
    assert remarks[0].startswith("main-3 · affinity · first token ")


def test_why_explains_the_last_decision() -> None:
    with server(streams("x")) as gateway, Conversation(gateway.url, "tiny") as conversation:
        _, remarks = dialogue(conversation, "/why", "Why?", "/why")
    assert remarks[0] == "nothing was asked yet"
    assert remarks[2] == "why req-1"


def test_why_without_a_routed_request_says_so() -> None:
    with Conversation("http://127.0.0.1:1", "tiny") as conversation:
        written, remarks = dialogue(conversation, "Why?", "/why")
    assert written == ""
    assert remarks[1] == "the last request reached no gateway"


def test_management_address_instead_of_gateway_gets_a_hint() -> None:
    other = CannedResponse([b'{"error": {"message": "Not Found"}}'], 404)
    with (
        server(other) as gateway,
        Conversation(gateway.url, "tiny") as conversation,
        pytest.raises(AnswerError, match="is this the address for clients"),
    ):
        list(conversation.send("?"))


def test_why_of_a_dropped_request_says_so() -> None:
    def forgotten(request_id: str) -> list[str]:
        raise LookupError(request_id)

    with server(streams("x")) as gateway, Conversation(gateway.url, "tiny") as conversation:
        _, remarks = dialogue(conversation, "Why?", "/why", why=forgotten)
    assert remarks[1] == "the gateway has forgotten request req-1"


def test_error_keeps_the_dialogue_and_drops_the_message() -> None:
    with server(CannedResponse([b"{}"], 503)) as gateway, Conversation(gateway.url, "tiny") as conversation:
        _, remarks = dialogue(conversation, "one")
        assert "503" in remarks[0]
        gateway.responses[CHAT] = streams("yes")
        written, _ = dialogue(conversation, "two", "/help", "/new", "/quit", "never read")
        assert written == "yes\n"
        assert [message["content"] for message in json.loads(gateway.requests[-1].body)["messages"]] == ["two"]


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program("chat", *arguments, stdin=stdin, **environment)


def test_message_option_prints_one_answer() -> None:
    with server(streams("The ", "sky")) as gateway:
        done = run("tiny", "--url", gateway.url, "--message", "Why?")
    assert (done.returncode, done.stdout, done.stderr) == (0, "The sky\n", "")


def test_piped_text_is_the_message() -> None:
    with server(streams("yes")) as gateway:
        done = run("--url", gateway.url, stdin="first line\nsecond line\n")
        assert json.loads(gateway.requests[-1].body)["messages"][0]["content"] == "first line\nsecond line\n"
    assert (done.returncode, done.stdout) == (0, "yes\n")


def test_exit_codes_of_error_wrong_usage_and_unreachable_differ(tmp_path: Path) -> None:
    with server(CannedResponse([b"{}"], 500)) as gateway:
        assert run("tiny", "--url", gateway.url, "--message", "?").returncode == 1
        assert run("tiny", "--url", gateway.url, stdin=" \n").returncode == 2
    nobody = run("tiny", "--message", "?", XDG_RUNTIME_DIR=str(tmp_path))
    assert nobody.returncode == 3
    assert "fairlead up" in nobody.stderr


def test_failed_answer_prints_only_the_error() -> None:
    with server(CannedResponse([b"{}"], 500)) as gateway:
        done = run("tiny", "--url", gateway.url, "--message", "?")
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_url_scheme_is_optional_and_invalid_url_exits_2() -> None:
    with server(streams("yes")) as gateway:
        assert run("--url", gateway.url.removeprefix("http://"), "--message", "?").stdout == "yes\n"
    done = run("--url", "ftp://127.0.0.1", "--message", "?")
    assert done.returncode == 2
    assert "--url: 'ftp://127.0.0.1' is not a URL" in done.stderr


def test_api_key_from_environment_is_sent() -> None:
    with server(streams("x")) as gateway:
        run("tiny", "--url", gateway.url, "--message", "?", FAIRLEAD_API_KEY="fl_secret")
        headers = {name.lower(): value for name, value in gateway.requests[-1].headers.items()}
    assert headers["authorization"] == "Bearer fl_secret"


def test_terminal_starts_a_dialogue_that_no_answer_controls() -> None:
    with server(streams("The ", "sky\x1b]0;title\x07")) as gateway:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "fairlead_cli", "chat", "tiny", "--url", gateway.url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"},
        )
        os.close(theirs)
        seen = b""
        try:
            for expected, typed in ((b"> ", b"Why?\n"), (b"first token", b"/quit\n")):
                while expected not in seen:
                    seen += os.read(ours, 4096)
                os.write(ours, typed)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    assert "The sky\N{REPLACEMENT CHARACTER}]0;title".encode() in seen
    assert b"\x1b]0;" not in seen
    assert b"main-3" in seen
