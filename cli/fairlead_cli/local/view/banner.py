"""The banner of a ready stack: addresses, and commands that use it. Pure text."""

import json
from dataclasses import dataclass

from fairlead_cli.formatting import format_seconds, pluralize

KEY_VARIABLE = "FAIRLEAD_API_KEY"
"""The variable that hints and other commands take the API key from."""
SAMPLE_QUESTION = "Why is the sky blue?"


@dataclass(frozen=True, slots=True)
class StackSummary:
    """Constant facts about a running stack.

    program: name of this command in hints.
    autoscaler: its URL, or empty.
    needs_key: clients need an API key.
    """

    url: str
    manage: str
    models: tuple[str, ...]
    engines: int
    kinds: tuple[str, ...]
    ready_seconds: float
    notes: tuple[str, ...] = ()
    program: str = "fairlead"
    autoscaler: str = ""
    needs_key: bool = False


def headline(stack: StackSummary) -> str:
    """Returns one sentence: what serves which models."""
    kind = "simulated " if stack.kinds == ("sim",) else ""
    engines = (
        f"on {pluralize(stack.engines, f'{kind}engine')}"
        if stack.engines
        else f"with {kind}engines that start when asked"
    )
    return f"Fairlead serves {', '.join(stack.models)} {engines}, {format_seconds(stack.ready_seconds)} after its start"


def autoscaler_lines(stack: StackSummary) -> list[str]:
    """Returns the address of the autoscaler, if there is one."""
    return [f"autoscaler   {stack.autoscaler}/metrics; {stack.program} explain scaling"] if stack.autoscaler else []


def curl_lines(stack: StackSummary) -> list[str]:
    """Returns a streaming request for a shell."""
    body = {"model": stack.models[0], "messages": [{"role": "user", "content": SAMPLE_QUESTION}], "stream": True}
    key = [f'  -H "authorization: Bearer ${KEY_VARIABLE}" \\'] if stack.needs_key else []
    return [
        f"curl -sN {stack.url}/v1/chat/completions -H 'content-type: application/json' \\",
        *key,
        f"  -d '{json.dumps(body)}'",
    ]


def sdk_lines(stack: StackSummary) -> list[str]:
    """Returns the same request with the OpenAI SDK."""
    messages = json.dumps([{"role": "user", "content": SAMPLE_QUESTION}])
    imported = ["import os", ""] if stack.needs_key else []
    key = f'os.environ["{KEY_VARIABLE}"]' if stack.needs_key else '"none"'
    return [
        *imported,
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{stack.url}/v1", api_key={key})',
        f'answer = client.chat.completions.create(model="{stack.models[0]}", messages={messages})',
        "print(answer.choices[0].message.content)",
    ]


def plain_lines(stack: StackSummary) -> list[str]:
    """Returns the banner for a pipe or a log; only its first line begins with ``ready``."""
    return [
        f"ready {stack.url} manage {stack.manage}",
        f"  {headline(stack)}",
        f"  OpenAI API   {stack.url}/v1",
        f"  status page  {stack.manage}/",
        *(f"  {line}" for line in autoscaler_lines(stack)),
        *(f"  note: {note}" for note in stack.notes),
        "  with curl:",
        *(f"    {line}" for line in curl_lines(stack)),
        "  with the OpenAI SDK:",
        *(f"    {line}" for line in sdk_lines(stack)),
        f"  from another terminal: {stack.program} chat {stack.models[0]}, {stack.program} local status",
    ]
