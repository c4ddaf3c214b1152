"""`fairlead explain shadow`: comparisons as text, and the command's exit codes."""

import pytest

from fairlead_cli.app import build_app
from fairlead_cli.explain.shadow import render_comparison
from fairlead_cli.management.api_types import Shadow, ShadowSide
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

STATS = (
    b'{"version": "1", "models": {"chat/big": {}, "chat/next": {"shadows": [{"original": "chat/big", "compared": 8, '
    b'"outcomes": {"answered": 7, "failed": 1, "no-room": 2}, '
    b'"copies": {"errors": 1, "ttft_mean_seconds": 0.21, "tpot_mean_seconds": 0.024, "output_tokens_mean": 312.4}, '
    b'"originals": {"errors": 0, "ttft_mean_seconds": 0.18, "tpot_mean_seconds": 0.02, "output_tokens_mean": 290}}]}}}'
)


def run(capsys: pytest.CaptureFixture[str], content: bytes, *arguments: str) -> tuple[int, str]:
    with CannedServer({"/api/stats": CannedResponse([content])}) as server:
        words = ["explain", "shadow", *arguments, "--manage", server.url]
        code = int(build_app()(words, result_action="return_value"))
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("arguments", [(), ("-m", "next"), ("-m", "chat/next")])
def test_comparison_is_shown_with_both_sides_and_their_difference(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, STATS, *arguments)
    assert code == 0
    assert text.splitlines() == [
        "chat/next answers copies of requests for chat/big",
        "8 of 10 compared; without an answer: no-room 2",
        "                copy     original",
        "errors          12.5 %   0.0 %",
        "TTFT            210ms    180ms      +17 %",
        "TPOT            24ms     20ms       +20 %",
        "answer tokens   312      290        +8 %",
    ]


def test_model_without_copies_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, STATS, "-m", "big")
    assert code == 1
    assert "no request was copied to big at" in text
    assert run(capsys, b'{"models": {}}')[0] == 1


def test_json_has_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, STATS, "-o", "json")
    assert code == 0
    assert '"compared": 8' in text


def test_unknown_values_are_dashes_and_gateways_are_named() -> None:
    lines = render_comparison("chat/next", Shadow("chat/big", {"too-many": 3}, 0, ShadowSide(), ShadowSide()), "gw-1")
    assert lines[0].endswith("chat/big, at gw-1")
    assert lines[3].split() == ["errors", "–", "–"]
