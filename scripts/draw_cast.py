"""The moving picture of a terminal in the README, as SVG with an animation of its style.

Starts ``fairlead up`` with eight simulated engines, asks a question, and lists and explains the
request. Each line is what the programs wrote, with the usual ports, and appears at its time. The
picture begins again after ``ROUND_SECONDS``; who wants less motion sees all lines at once.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fairlead_testing.local_stack import LocalStack
from fairlead_testing.processes import block_until
from scripts.draw_screens import FAIRLEAD, IMAGES, MODEL, PATIENCE_SECONDS, output, terminal_svg

NAME = "terminal-cast"
COLUMNS, OUTPUT_LINES, BANNER_LINES = 112, 14, 4
ROUND_SECONDS = 16.0
_COMMAND_SECONDS, _LINE_SECONDS = 1.6, 0.12
_QUESTION = ("chat", "qwen2.5-7b", "--max-tokens", "24", "--message", "Why is the sky blue?")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(Path(folder), "--plain", manifest=MODEL.read_text()) as up,
    ):
        up.wait_ready(PATIENCE_SECONDS)
        block_until(lambda: len(_banner(up.lines)) == BANNER_LINES, "the banner is there", PATIENCE_SECONDS)
        shown = [("fairlead up", _banner(up.lines))]
        environment = {**up.environment, "COLUMNS": str(COLUMNS)}
        for words in (_QUESTION, ("requests", "--slow", "--limit", "1"), ("explain", "request")):
            text = output(environment, *FAIRLEAD, *words)
            typed = " ".join(f'"{word}"' if " " in word else word for word in words)
            shown.append((f"fairlead {typed}", text.splitlines()[:OUTPUT_LINES]))
    picture = cast(shown).replace(up.url, "http://127.0.0.1:8000").replace(up.manage, "http://127.0.0.1:8001")
    IMAGES.joinpath(f"{NAME}.svg").write_text(picture, encoding="utf-8")


def _banner(lines: Sequence[str]) -> list[str]:
    first = next(number for number, line in enumerate(lines) if line.startswith("ready "))
    return [line.rstrip() for line in lines[first : first + BANNER_LINES]]


def cast(shown: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns the picture of commands and their output."""
    lines, times, now = [], [], 0.5
    for command, answer in shown:
        lines.append(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m")
        times.append(now)
        now += _COMMAND_SECONDS
        for line in (*answer, ""):
            lines.append(line)
            times.append(now)
            now += _LINE_SECONDS
    svg = terminal_svg(NAME, "fairlead", lines, COLUMNS, crops=True)
    return svg.replace("</style>", "".join(map(_rule, range(len(times)), times)) + "</style>", 1)


def _rule(number: int, seconds: float) -> str:
    """Returns the style of a line that appears at a time of each round."""
    share = 100.0 * seconds / ROUND_SECONDS
    frames = f"0%{{opacity:0}}{share:.2f}%,98%{{opacity:1}}100%{{opacity:0}}"
    animation = f"animation:line-{number} {ROUND_SECONDS:g}s infinite step-end"
    chosen = f'[clip-path="url(#{NAME}-line-{number})"]'
    return (
        f"@keyframes line-{number}{{{frames}}}@media (prefers-reduced-motion:no-preference){{{chosen}{{{animation}}}}}"
    )


if __name__ == "__main__":
    main()
