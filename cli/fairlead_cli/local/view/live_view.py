"""The live view as a function: from a frame to a Rich renderable of limited height."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairlead import management_api as api
from fairlead_cli import formatting
from fairlead_cli.formatting import format_seconds, pluralize, short_instance_name
from fairlead_cli.local.processes.managed_process import ManagedProcess
from fairlead_cli.local.stack.supervisor import StackSupervisor
from fairlead_cli.management.client import GatewaySnapshot

KEY_VARIABLE = "FAIRLEAD_API_KEY"
"""The variable that hints and other commands take the API key from."""
SAMPLE_QUESTION = "Why is the sky blue?"
_SAMPLE_MESSAGES = json.dumps([{"role": "user", "content": SAMPLE_QUESTION}])

BAR_BLOCKS = " ▏▎▍▌▋▊▉█"

MIN_ENGINES = 2
BAR_MIN_WIDTH = 76

PHASE_STYLES = {
    "Ready": "green",
    "Starting": "yellow",
    "Draining": "yellow",
    "Sleeping": "dim",
    "Waiting": "red",
    "Stopped": "dim",
}

RULE_STYLES = {"affinity": "green", "slo-spill": "yellow", "load": "cyan", "none": "red"}

PHASE_MARKS = {"Ready": "●", "Starting": "◌", "Draining": "◐", "Sleeping": "☾", "Waiting": "×", "Stopped": "○"}


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
    return [f"autoscaler   {stack.autoscaler}/metrics; {stack.program} explain scaling"] if stack.autoscaler else []


def curl_lines(stack: StackSummary) -> list[str]:
    """Returns a streaming request for a shell, in lines for a narrow terminal."""
    key = [f'  -H "authorization: Bearer ${KEY_VARIABLE}" \\'] if stack.needs_key else []
    return [
        f"curl -sN {stack.url}/v1/chat/completions \\",
        *key,
        "  -H 'content-type: application/json' -d '{",
        f'  "model": {json.dumps(stack.models[0])}, "stream": true,',
        f'  "messages": {_SAMPLE_MESSAGES}}}\'',
    ]


def sdk_lines(stack: StackSummary) -> list[str]:
    """Returns the same request with the OpenAI SDK, in lines for a narrow terminal."""
    imported = ["import os", ""] if stack.needs_key else []
    key = f'os.environ["{KEY_VARIABLE}"]' if stack.needs_key else '"none"'
    return [
        *imported,
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{stack.url}/v1",',
        f"                api_key={key})",
        "answer = client.chat.completions.create(",
        f"    model={json.dumps(stack.models[0])},",
        f"    messages={_SAMPLE_MESSAGES},",
        ")",
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
        *curl_lines(stack),
        "  with the OpenAI SDK:",
        *sdk_lines(stack),
        f"  from another terminal: {stack.program} chat {stack.models[0]}, {stack.program} local status",
    ]


MAX_EVENTS, MIN_EVENTS = 5, 2
MAX_DECISIONS, MIN_DECISIONS = 8, 3


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A child process; an engine process has the ids of its instances."""

    name: str
    phase: str
    restarts: int = 0
    pid: int | None = None
    model: str | None = None
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that the view shows. ``snapshot`` is None while the gateway does not answer."""

    url: str
    manage: str
    up_seconds: float
    processes: tuple[ProcessView, ...]
    snapshot: GatewaySnapshot | None = None
    events: tuple[tuple[float, str], ...] = ()
    closing: str = ""


def render_frame(frame: Frame, height: int, width: int = 80) -> RenderableType:
    """Returns the view, shorter than ``height``: engines, then decisions, then events."""
    rows = {
        key: [row for process in frame.processes if process.model == key for row in _rows(process)]
        for key in _models(frame)
    }
    decisions = frame.snapshot.decisions.decisions if frame.snapshot else []
    fixed = 2 + 4 * len(rows)  # the head; of each model a blank line, its two lines and the table's heading
    minimum = sum(
        2 + count for count in (min(len(decisions), MIN_DECISIONS), min(len(frame.events), MIN_EVENTS)) if count
    )
    line_counts = _lines_per_model(
        {key: len(engine_rows) for key, engine_rows in rows.items()}, height - 1 - fixed - minimum
    )
    parts: list[RenderableType] = [_header(frame)]
    lines = fixed
    for key, engine_rows in rows.items():
        parts += [Text(), *_model_lines(frame, key), _engines(frame, key, engine_rows, line_counts[key], width)]
        lines += min(line_counts[key] + 1, len(engine_rows))
    space = height - 1 - lines - 2 - 1  # headings and blank lines of what follows
    events = _fit(len(frame.events), space - min(len(decisions), MAX_DECISIONS), MIN_EVENTS, MAX_EVENTS)
    routed = _fit(len(decisions), space - events, MIN_DECISIONS, MAX_DECISIONS)
    if routed:
        parts += [Text(), Text("last decisions", style="bold"), _decisions(decisions[:routed])]
    if events:
        parts += [Text(), _events(frame.events[-events:])]
    return Group(*parts)


def _lines_per_model(rows_by_model: dict[str, int], space: int) -> dict[str, int]:
    """Returns the number of engine lines for each model.

    All engines get a line if they fit. Else each model gets at most the same number, so that a line
    for its other engines fits too.
    """
    if sum(rows_by_model.values()) <= space:
        return rows_by_model
    per_model = max(MIN_ENGINES, space // max(1, len(rows_by_model)) - 1)
    return {key: number if number <= per_model + 1 else per_model for key, number in rows_by_model.items()}


def _fit(available: int, space: int, minimum: int, maximum: int) -> int:
    return min(available, max(minimum, min(maximum, space)))


def _models(frame: Frame) -> list[str]:
    return list(dict.fromkeys(process.model for process in frame.processes if process.model))


def _header(frame: Frame) -> Text:
    line = Text.assemble(("Fairlead", "bold"), f"  up {formatting.format_seconds(round(frame.up_seconds))}")
    for process in frame.processes:
        if process.model is None:
            line.append("  ")
            line.append(PHASE_MARKS.get(process.phase, "?"), PHASE_STYLES.get(process.phase, ""))
            line.append(f" {process.name}")
            if process.restarts:
                line.append(f" ↻{process.restarts}")
    line.append(f"  {frame.closing or 'Ctrl-C stops everything'}", "yellow" if frame.closing else "dim")
    line.append("\n")
    line.append(f"{frame.url}/v1", "cyan")
    line.append("  status page ", "dim")
    line.append(f"{frame.manage}/", "cyan")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _model_lines(frame: Frame, key: str) -> list[Text]:
    """Returns two lines: state and load, and the last minute."""
    name = Text(key.removeprefix("default/"), "bold cyan", no_wrap=True, overflow="ellipsis")
    if frame.snapshot is None:
        return [name, Text("the gateway does not answer yet", "dim")]
    model = next((model for model in frame.snapshot.fleet.models if model.key == key), None)
    stats = frame.snapshot.stats.models.get(key, api.ModelStatsOut())
    if model:
        name.append(f"  {model.preset}", "not bold default")
    name.append(f"  {stats.in_flight} in flight  {stats.queue} in the queue", "not bold default")
    return [name, last_minute_text(stats.window)]


def _rows(process: ProcessView) -> list[tuple[ProcessView, str]]:
    return [(process, instance_id) for instance_id in process.instances or (process.name,)]


def _engines(
    frame: Frame, key: str, rows: Sequence[tuple[ProcessView, str]], max_rows: int, width: int
) -> RenderableType:
    """Returns the engines of a model; when not all fit, the unhealthy and the busiest."""
    instances = _instances_by_id(frame, key)
    stats = frame.snapshot.stats.models.get(key) if frame.snapshot else None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("in flight", "queue", "backlog", "TTFT"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= BAR_MIN_WIDTH:
        table.add_column("work in the last minute", no_wrap=True)
    for row, instance_id in _select_rows(rows, instances, max_rows):
        instance = instances.get(instance_id)
        instance_stats = stats.instances.get(instance_id) if stats else None
        cells: list[str | Text] = [
            Text(short_instance_name(instance_id)),
            _phase_text(_state(row, instance), row.restarts),
            formatting.format_count(instance.in_flight if instance else None),
            formatting.format_count(instance.waiting if instance else None),
            formatting.format_seconds(instance.backlog_seconds if instance else None),
            formatting.format_seconds(instance_stats.ttft_mean_seconds if instance_stats else None),
        ]
        table.add_row(
            *cells,
            *([_bar(instance_stats.share_of_work if instance_stats else None)] if width >= BAR_MIN_WIDTH else []),
        )
    hidden = len(rows) - max_rows
    return table if hidden <= 0 else Group(table, Text(f"… and {hidden} more; the status page has all", "dim"))


def _select_rows(
    rows: Sequence[tuple[ProcessView, str]], instances: Mapping[str, api.InstanceOut], max_rows: int
) -> list[tuple[ProcessView, str]]:
    """Returns the rows of the unhealthy and the busiest engines, at most ``max_rows``, in their
    order.
    """

    def importance(position: int) -> tuple[bool, int]:
        row, instance_id = rows[position]
        instance = instances.get(instance_id)
        return _state(row, instance) == "Ready", -((instance.in_flight if instance else None) or 0)

    chosen = sorted(range(len(rows)), key=importance)[:max_rows]
    return [rows[position] for position in sorted(chosen)]


def _phase_text(state: str, restarts: int) -> Text:
    text = Text(f"{PHASE_MARKS.get(state, '?')} {state}", PHASE_STYLES.get(state, ""))
    return text.append(f" ↻{restarts}", "default") if restarts else text


def _state(row: ProcessView, instance: api.InstanceOut | None) -> str:
    """Returns the supervisor's phase, or the gateway's state while the process is ready."""
    if row.phase == "Ready" and instance is not None and instance.state in ("Draining", "Sleeping", "Starting"):
        return instance.state
    return row.phase


def _instances_by_id(frame: Frame, key: str) -> dict[str, api.InstanceOut]:
    if frame.snapshot is None:
        return {}
    return {
        instance.id: instance
        for model in frame.snapshot.fleet.models
        if model.key == key
        for instance in model.instances
    }


def _bar(value: float | None, width: int = 12) -> Text:
    if value is None:
        return Text(formatting.UNKNOWN, "dim")
    eighths = round(min(1.0, max(0.0, value)) * width * 8)
    full, remainder = divmod(eighths, 8)
    bar = "█" * full + (BAR_BLOCKS[remainder] if remainder else "")
    return Text.assemble((bar.ljust(width), "green"), f" {formatting.format_share(value):>5}")


def _decisions(decisions: Sequence[api.DecisionOut]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1, style="dim")
    for decision in decisions:
        last = decision.choices[-1] if decision.choices else api.ChoiceOut()
        table.add_row(
            format_clock(decision.wall),
            f"{formatting.format_count(decision.prompt_tokens)} tokens",
            Text(f"→ {short_instance_name(last.instance) if last.instance else 'nowhere'}"),
            Text(last.rule, RULE_STYLES.get(last.rule, "")),
            Text(format_result(decision.outcome)),
            Text(formatting.printable(last.reason)),
        )
    return table


def _events(events: Sequence[tuple[float, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, overflow="ellipsis")
    for wall, text in events:
        table.add_row(format_clock(wall), Text(formatting.printable(text.partition("\n")[0])))
    return table


def process_views(supervisor: StackSupervisor) -> tuple[ProcessView, ...]:
    """Returns the components, then the engine processes."""
    components = (
        ("gateway", supervisor.gateway),
        ("redis", supervisor.redis),
        ("indexer", supervisor.indexer),
        ("autoscaler", supervisor.autoscaler),
    )
    views = [_process_view(process, name, None, ()) for name, process in components if process is not None]
    for engine in supervisor.engines:
        if engine.process is not None:
            views.append(
                _process_view(engine.process, engine.name, engine.pool.model.key, tuple(engine.instance_ids()))
            )
    return tuple(views)


def _process_view(process: ManagedProcess, name: str, model: str | None, ids: tuple[str, ...]) -> ProcessView:
    pid = process.child.pid if process.child else None
    return ProcessView(name, process.phase.value, process.restarts, pid, model, ids)


class PlainScreen:
    """A screen of plain lines: one for each event. Exactly one line begins with ``ready``."""

    is_live = False

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show_event(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def show_ready(self, stack: StackSummary) -> None:
        print("\n".join(plain_lines(stack)), file=self._out, flush=True)

    def draw(self, frame: Frame) -> None:
        """Does nothing: plain output consists of events only."""

    def close(self) -> None:
        """Does nothing: there is no view to remove."""


class LiveScreen:
    """A view that is redrawn in place below the banner."""

    is_live = True

    def __init__(self) -> None:
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._live.start()

    def show_event(self, line: str) -> None:
        if not self._live.is_started:
            self._console.print(line, style="dim", markup=False)

    def show_ready(self, stack: StackSummary) -> None:
        """Prints the banner, which stays when the view is closed."""
        show = self._console.print
        show(Text(headline(stack), "bold"))
        show(Text.assemble("\n  OpenAI API   ", (f"{stack.url}/v1", "cyan")))
        show(Text.assemble("  status page  ", (f"{stack.manage}/", "cyan")))
        for line in autoscaler_lines(stack):
            show(Text(f"  {line}"))
        show()
        for line in (*curl_lines(stack), "", *sdk_lines(stack)):
            show(Text(line, "dim"), soft_wrap=True)
        chat, status = f"{stack.program} chat {stack.models[0]}", f"{stack.program} local status"
        show(Text.assemble("\n  in another terminal: ", (chat, "cyan"), " · ", (status, "cyan"), "\n"))
        for note in stack.notes:
            show(Text(f"  note: {note}", "yellow"))

    def draw(self, frame: Frame) -> None:
        width, height = self._console.size
        self._live.update(render_frame(frame, height, width), refresh=True)

    def close(self) -> None:
        self._live.stop()


Screen = PlainScreen | LiveScreen


def choose_screen(out: TextIO, *, plain: bool) -> Screen:
    """Returns the live screen for a capable terminal, unless ``plain`` is set."""
    if plain or not out.isatty() or os.environ.get("TERM", "dumb") == "dumb" or out is not sys.stdout:
        return PlainScreen(out)
    return LiveScreen()


def last_minute_text(window: api.SliceOut) -> Text:
    """Returns rate, hit rate, latencies and SLO of a model's last minute."""
    line = Text(formatting.format_rate(window.requests_per_second), no_wrap=True, overflow="ellipsis")
    line.append(f"  hit rate {formatting.format_share(window.cached_token_share)}")
    line.append(
        f"  TTFT {formatting.format_seconds(window.ttft_seconds.p50)} (p90 {formatting.format_seconds(window.ttft_seconds.p90)})"
    )
    line.append(f"  ITL {formatting.format_seconds(window.itl_seconds.p50)}")
    line.append(f"  in SLO {formatting.format_share(window.within_objective)}")
    if window.errors:
        line.append(f"  {formatting.pluralize(window.errors, 'error')}", "bold red")
    return line


def format_result(outcome: api.OutcomeOut | None) -> str:
    """Returns the end of a request in a word or two."""
    if outcome is None:
        return "running"
    if outcome.client_gone:
        return "client left"
    if outcome.error or outcome.status >= 400:
        return f"{outcome.status} {outcome.error or ''}".strip()
    return f"TTFT {formatting.format_seconds(outcome.ttft_seconds)}" if outcome.ttft_seconds is not None else "done"


def format_clock(wall: float) -> str:
    return datetime.fromtimestamp(wall).strftime("%H:%M:%S")
