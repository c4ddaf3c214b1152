"""The live terminal view as a function: a frame (what is known now) → something rich can draw, in the height there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairlead_cli import formatting
from fairlead_cli.local.view.fragments import (
    PHASE_MARKS,
    PHASE_STYLES,
    RULE_STYLES,
    format_clock,
    format_result,
    last_minute_text,
)
from fairlead_cli.management import api_types
from fairlead_cli.management.client import GatewaySnapshot

BAR_BLOCKS = " ▏▎▍▌▋▊▉█"
MAX_EVENTS, MIN_EVENTS = 5, 2
MAX_DECISIONS, MIN_DECISIONS = 8, 3
MIN_ENGINES = 2
BAR_MIN_WIDTH = 76


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One child process; an engine process carries the ids of its instances."""

    name: str
    phase: str
    restarts: int = 0
    pid: int | None = None
    model: str | None = None
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything the view shows. ``snapshot`` is None while the gateway does not answer."""

    url: str
    manage: str
    up_seconds: float
    processes: tuple[ProcessView, ...]
    snapshot: GatewaySnapshot | None = None
    events: tuple[tuple[float, str], ...] = ()
    closing: str = ""


def render_frame(frame: Frame, height: int, width: int = 80) -> RenderableType:
    """The whole view, less than ``height`` lines high; engines come first, then decisions, then events."""
    rows = {
        key: [row for process in frame.processes if process.model == key for row in _rows(process)]
        for key in _models(frame)
    }
    decisions = frame.snapshot.decisions.decisions if frame.snapshot else []
    fixed = 2 + 4 * len(rows)  # the head; of each model a blank line, its two lines and the table's heading
    least = sum(2 + most for most in (min(len(decisions), MIN_DECISIONS), min(len(frame.events), MIN_EVENTS)) if most)
    shown = _shares({key: len(found) for key, found in rows.items()}, height - 1 - fixed - least)
    parts: list[RenderableType] = [_head(frame)]
    lines = fixed
    for key, found in rows.items():
        parts += [Text(), *_model_lines(frame, key), _engines(frame, key, found, shown[key], width)]
        lines += min(shown[key] + 1, len(found))
    room = height - 1 - lines - 2 - 1  # headings and blank lines of what follows
    events = _most(len(frame.events), room - min(len(decisions), MAX_DECISIONS), MIN_EVENTS, MAX_EVENTS)
    routed = _most(len(decisions), room - events, MIN_DECISIONS, MAX_DECISIONS)
    if routed:
        parts += [Text(), Text("last decisions", style="bold"), _decisions(decisions[:routed])]
    if events:
        parts += [Text(), _events(frame.events[-events:])]
    return Group(*parts)


def _shares(wanted: dict[str, int], room: int) -> dict[str, int]:
    """Lines for the engines of each model: all where there is room, else the same for each and one to say how many more."""
    if sum(wanted.values()) <= room:
        return wanted
    each = max(MIN_ENGINES, room // max(1, len(wanted)) - 1)
    return {key: number if number <= each + 1 else each for key, number in wanted.items()}


def _most(there: int, room: int, least: int, most: int) -> int:
    return min(there, max(least, min(most, room)))


def _models(frame: Frame) -> list[str]:
    return list(dict.fromkeys(process.model for process in frame.processes if process.model))


def _head(frame: Frame) -> Text:
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
    """Two lines: what it is and does now, and its last minute."""
    name = Text(key.removeprefix("default/"), "bold cyan", no_wrap=True, overflow="ellipsis")
    if frame.snapshot is None:
        return [name, Text("the gateway does not answer yet", "dim")]
    model = next((model for model in frame.snapshot.fleet.models if model.key == key), None)
    stats = frame.snapshot.stats.models.get(key, api_types.ModelStats())
    if model:
        name.append(f"  {model.preset}", "not bold default")
    name.append(f"  {stats.in_flight} in flight  {stats.queue} in the queue", "not bold default")
    return [name, last_minute_text(stats.window)]


def _rows(process: ProcessView) -> list[tuple[ProcessView, str]]:
    """A line for each instance of a process."""
    return [(process, one) for one in process.instances or (process.name,)]


def _engines(frame: Frame, key: str, rows: Sequence[tuple[ProcessView, str]], most: int, width: int) -> RenderableType:
    """The engines of a model; where there is no room for all, those that are not well and the busiest."""
    known = _instances(frame, key)
    stats = frame.snapshot.stats.models.get(key) if frame.snapshot else None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    table.add_column("engine", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("in flight", "queue", "backlog", "TTFT"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= BAR_MIN_WIDTH:
        table.add_column("work in the last minute", no_wrap=True)
    for row, one in _shown(rows, known, most):
        instance = known.get(one)
        part = stats.instances.get(one) if stats else None
        cells: list[str | Text] = [
            api_types.short_instance_name(one),
            _life(_state(row, instance), row.restarts),
            formatting.format_count(instance.in_flight if instance else None),
            formatting.format_count(instance.waiting if instance else None),
            formatting.format_seconds(instance.backlog_seconds if instance else None),
            formatting.format_seconds(part.ttft_mean_seconds if part else None),
        ]
        table.add_row(*cells, *([_bar(part.share_of_work if part else None)] if width >= BAR_MIN_WIDTH else []))
    left = len(rows) - most
    return table if left <= 0 else Group(table, Text(f"… and {left} more; the status page has all", "dim"))


def _shown(
    rows: Sequence[tuple[ProcessView, str]], known: Mapping[str, api_types.Instance], most: int
) -> list[tuple[ProcessView, str]]:
    """At most so many, in their order."""

    def importance(place: int) -> tuple[bool, int]:
        row, one = rows[place]
        instance = known.get(one)
        return _state(row, instance) == "Ready", -((instance.in_flight if instance else None) or 0)

    chosen = sorted(range(len(rows)), key=importance)[:most]
    return [rows[place] for place in sorted(chosen)]


def _life(state: str, restarts: int) -> Text:
    text = Text(f"{PHASE_MARKS.get(state, '?')} {state}", PHASE_STYLES.get(state, ""))
    return text.append(f" ↻{restarts}", "default") if restarts else text


def _state(row: ProcessView, instance: api_types.Instance | None) -> str:
    """The supervisor knows of life and death first; the gateway knows of draining, sleep and waking."""
    if row.phase == "Ready" and instance is not None and instance.state in ("Draining", "Sleeping", "Starting"):
        return instance.state
    return row.phase


def _instances(frame: Frame, key: str) -> dict[str, api_types.Instance]:
    if frame.snapshot is None:
        return {}
    return {one.id: one for model in frame.snapshot.fleet.models if model.key == key for one in model.instances}


def _bar(value: float | None, width: int = 12) -> Text:
    if value is None:
        return Text(formatting.UNKNOWN, "dim")
    eighths = round(min(1.0, max(0.0, value)) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (BAR_BLOCKS[rest] if rest else "")
    return Text.assemble((drawn.ljust(width), "green"), f" {formatting.format_share(value):>5}")


def _decisions(shown: Sequence[api_types.Decision]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1, style="dim")
    for decision in shown:
        last = decision.choices[-1] if decision.choices else api_types.Choice()
        table.add_row(
            format_clock(decision.wall),
            f"{formatting.format_count(decision.prompt_tokens)} tokens",
            f"→ {api_types.short_instance_name(last.instance) if last.instance else 'nowhere'}",
            Text(last.rule, RULE_STYLES.get(last.rule, "")),
            format_result(decision.outcome),
            last.reason,
        )
    return table


def _events(shown: Sequence[tuple[float, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, overflow="ellipsis")
    for wall, text in shown:
        table.add_row(format_clock(wall), text.partition("\n")[0])
    return table
