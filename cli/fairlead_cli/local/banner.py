"""What a stack says of itself once it serves: where it is, and the lines that use it. Pure text."""

import json
from dataclasses import dataclass

from fairlead_cli.local.words import plural, time

QUESTION = "Why is the sky blue?"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known once and for all about a running stack; ``program`` is how this command line is called here, ``autoscaler`` the
    URL of the one that sizes pools, empty where nothing is scaled."""

    url: str
    manage: str
    models: tuple[str, ...]
    engines: int
    kinds: tuple[str, ...]
    ready_seconds: float
    notes: tuple[str, ...] = ()
    program: str = "fairlead"
    autoscaler: str = ""


def headline(facts: Facts) -> str:
    """One sentence: what serves what."""
    kind = "simulated " if facts.kinds == ("sim",) else ""
    engines = (
        f"on {plural(facts.engines, f'{kind}engine')}" if facts.engines else f"with {kind}engines that start when asked"
    )
    return f"Fairlead serves {', '.join(facts.models)} {engines}, {time(facts.ready_seconds)} after its start"


def scaling(facts: Facts) -> list[str]:
    """Where the autoscaler is and who explains it, where there is one."""
    return [f"autoscaler   {facts.autoscaler}/metrics; {facts.program} explain scale"] if facts.autoscaler else []


def curl(facts: Facts) -> list[str]:
    """A request that streams, for a shell."""
    body = {"model": facts.models[0], "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    return [
        f"curl -sN {facts.url}/v1/chat/completions -H 'content-type: application/json' \\",
        f"  -d '{json.dumps(body)}'",
    ]


def sdk(facts: Facts) -> list[str]:
    """The same with the OpenAI SDK."""
    messages = json.dumps([{"role": "user", "content": QUESTION}])
    return [
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{facts.url}/v1", api_key="none")',
        f'answer = client.chat.completions.create(model="{facts.models[0]}", messages={messages})',
        "print(answer.choices[0].message.content)",
    ]


def plain_lines(facts: Facts) -> list[str]:
    """For a pipe or a log: the first line begins with ``ready`` and no other line does."""
    return [
        f"ready {facts.url} manage {facts.manage}",
        f"  {headline(facts)}",
        f"  OpenAI API   {facts.url}/v1",
        f"  status page  {facts.manage}/",
        *(f"  {line}" for line in scaling(facts)),
        *(f"  note: {note}" for note in facts.notes),
        "  with curl:",
        *(f"    {line}" for line in curl(facts)),
        "  with the OpenAI SDK:",
        *(f"    {line}" for line in sdk(facts)),
        f"  from another terminal: {facts.program} chat {facts.models[0]}, {facts.program} status",
    ]
