"""Draws terminal output of a running stack as SVG files below ``docs/images``.

Starts ``fairlead up`` on free ports, sends requests, and captures ``fairlead local status`` and
``fairlead explain request`` as a terminal shows them. The files name no font of another host.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import openai
from rich.console import Console
from rich.text import Text

from fairlead_testing.local_stack import LocalStack

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "Why is the sky blue?",
    "Why is the sea blue?",
    "Write a haiku about routers.",
    "Why is the sky blue? Briefly.",
)
PICTURES = {
    "terminal-status": ("local", "status"),
    "terminal-explain": ("explain", "request"),
}
COLUMNS = 112


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(
            Path(folder), "--speed", "4", manifest=(ROOT / "examples" / "02-eight-engines.yaml").read_text()
        ) as up,
    ):
        up.wait_ready()
        with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none") as client:
            model = client.models.list().data[0].id
            for prompt in PROMPTS * 3:
                chunks = client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": prompt}], max_tokens=32, stream=True
                )
                for _ in chunks:
                    pass
        for name, words in PICTURES.items():
            draw(name, f"fairlead {' '.join(words)}", output(up, words))


def output(up: LocalStack, words: tuple[str, ...]) -> str:
    """Returns what a command writes to a terminal with colours."""
    environment = {**up.environment, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "fairlead_cli", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def draw(name: str, title: str, text: str) -> None:
    """Writes one picture."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(text.rstrip()))
    svg = console.export_svg(title=title, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace")
    (ROOT / "docs" / "images" / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
