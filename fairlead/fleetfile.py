"""The fleet file: a fleet as YAML, for serving without a cluster and for the local supervisor that writes it.

``parse`` and ``dump`` are each other's inverse; ``FileFleetSource`` watches a file and yields a new Fleet after every edit.
A broken edit changes nothing: the last good fleet stays, and what is wrong with the file is kept in ``problem``.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic.alias_generators import to_camel

from fairlead import units
from fairlead.api.base import Objectives, Profile, Routing, Strict, wrong
from fairlead.clock import Clock
from fairlead.documents import Node, decode, documents, dotted, resolve, shown
from fairlead.endpoints import engine_url
from fairlead.engines import engine_kinds
from fairlead.errors import BadInput, FairleadError, ManifestError, Problem, Unavailable
from fairlead.findings import findings
from fairlead.fleet import Fleet, Instance, InstanceState, Model, Role
from fairlead.limits import Limits
from fairlead.names import DNS_LABEL, model_name
from fairlead.profile import EngineProfile, presets

_BARE = re.compile(r"[A-Za-z][A-Za-z0-9.-]*")
_ZMQ_PATTERN = r"^tcp://\S+:\d+$"


def _checked_name(text: str) -> str:
    try:
        return model_name(text)
    except BadInput as error:
        raise wrong(error.message, "use a name of 1 to 253 bytes without control characters") from error


def _checked_namespace(text: str) -> str:
    if not DNS_LABEL.fullmatch(text):
        raise wrong(f"{shown(text)} is not a namespace", "use lower-case letters, digits and -, at most 63")
    return text


def _checked_id(text: str) -> str:
    if not 0 < len(text) <= 253 or not all("!" <= char <= "~" for char in text):
        raise wrong(f"{shown(text)} is not an instance id", "use 1 to 253 visible ASCII characters without spaces")
    return text


def _checked_engine(text: str) -> str:
    known = engine_kinds()
    if text not in known:
        raise wrong(f"must be one of {', '.join(known)}, not {shown(text)}", "write the kind of the engine")
    return text


def _served_role(role: Role) -> Role:
    if role is not Role.SERVE:
        message = f"the role {role.value} is planned, but nothing in this release splits prefill from decode"
        raise wrong(message, "use Serve")
    return role


def _checked_url(text: str) -> str:
    try:
        return engine_url(text)
    except BadInput as error:
        raise wrong(error.message, error.hint or "") from error


def _preset_shorthand(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


class FileProfile(Profile):
    """As in an AcceleratorClass, with a name of its own."""

    name: Annotated[str | None, Field(min_length=1, max_length=253)] = None


class FileInstance(Strict):
    """One engine endpoint."""

    url: Annotated[str, AfterValidator(_checked_url), Field(examples=["http://127.0.0.1:9001"])]
    id: Annotated[str, AfterValidator(_checked_id)] | None = None
    pool: Annotated[str, AfterValidator(_checked_id)] = "main"
    engine: Annotated[str, AfterValidator(_checked_engine), Field(examples=["vllm"])] = "vllm"
    role: Annotated[Role, Field(strict=False), AfterValidator(_served_role)] = Role.SERVE
    state: Annotated[InstanceState, Field(strict=False)] = InstanceState.READY
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    adapters: list[Annotated[str, AfterValidator(_checked_name)]] = Field(default_factory=list)
    dp_rank: Annotated[int | None, Field(ge=0, le=65_535)] = None
    kv_events: Annotated[str | None, Field(pattern=_ZMQ_PATTERN, examples=["tcp://127.0.0.1:5557"])] = None
    kv_replay: Annotated[str | None, Field(pattern=_ZMQ_PATTERN, examples=["tcp://127.0.0.1:5558"])] = None
    profile: Annotated[FileProfile | None, BeforeValidator(_preset_shorthand), Field(examples=["910b4"])] = None


class FileModel(Strict):
    """A client-visible model and the engines that serve it."""

    name: Annotated[str, AfterValidator(_checked_name), Field(examples=["tiny"])]
    namespace: Annotated[str, AfterValidator(_checked_namespace), Field(examples=["default"])] = "default"
    objectives: Objectives = Objectives()
    routing: Routing = Routing()
    instances: list[FileInstance] = Field(default_factory=list, examples=['[{url: "http://127.0.0.1:9001"}]'])


class FileFleet(Strict):
    """The whole file."""

    models: Annotated[list[FileModel], Field(examples=["[{name: tiny, instances: [...]}]"])]


def parse(text: str, *, file: str, limits: Limits | None = None) -> Fleet:
    """The fleet that ``text`` describes, as version 1. Raises ManifestError with every problem found."""
    limits = limits or Limits()
    found = documents(text, file=file, limits=limits)
    if len(found) != 1:
        message = "the file is empty" if not found else f"{len(found)} YAML documents, a fleet file has one"
        line = found[1].line if found else 1
        fix = "begin with `models:`" if not found else "put all models under one `models:`"
        raise ManifestError((Problem(file, line, "(document)", message, fix),))
    node = found[0]
    try:
        content = FileFleet.model_validate(node.plain())
    except ValidationError as error:
        raise ManifestError(tuple(findings(error, FileFleet, node, file))) from error
    problems = _duplicates(content, node, file) + _oversize(content, node, file, limits)
    if problems:
        raise ManifestError(tuple(problems))
    models = sorted((_model(item) for item in content.models), key=lambda model: model.key)
    instances = {f"{item.namespace}/{item.name}": _instances(item) for item in content.models}
    return Fleet(
        version=1,
        membership_epoch=1,
        models={model.key: model for model in models},
        instances={model.key: instances[model.key] for model in models},
    )


def _model(item: FileModel) -> Model:
    return Model(item.namespace, item.name, item.objectives.values(), item.routing.preset.value)


def _instances(item: FileModel) -> tuple[Instance, ...]:
    values = [
        Instance(
            id=_id(one),
            namespace=item.namespace,
            model=item.name,
            pool=one.pool,
            url=one.url,
            engine=one.engine,
            role=one.role,
            state=one.state,
            adapters=frozenset(one.adapters),
            weight=one.weight,
            profile=one.profile.value(one.profile.name or f"{item.name}-{one.pool}") if one.profile else None,
            dp_rank=one.dp_rank,
            kv_events=one.kv_events,
            kv_replay=one.kv_replay,
        )
        for one in item.instances
    ]
    return tuple(sorted(values, key=lambda instance: instance.id))


def _id(one: FileInstance) -> str:
    """The id given, else ``<host>/<port>/<rank>``: it does not change when other lines of the file do."""
    if one.id is not None:
        return one.id
    host, port = one.url.removeprefix("http://").rsplit(":", 1)
    return f"{host.strip('[]')}/{port}/{one.dp_rank or 0}"


def _duplicates(content: FileFleet, node: Node, file: str) -> list[Problem]:
    """A name or an id given twice; ids are unique in the whole file, because metrics and logs name instances by them."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    taken: dict[str, int] = {}
    for m, model in enumerate(content.models):
        path: tuple[str | int, ...] = ("models", m, "name")
        line = node.at(path).line
        key = f"{model.namespace}/{model.name}"
        if key in seen:
            message = f"the model {key} is already given on line {seen[key]}"
            problems.append(Problem(file, line, dotted(path), message, "put the instances of one model together"))
        seen.setdefault(key, line)
        for i, one in enumerate(model.instances):
            path = ("models", m, "instances", i)
            line = node.at(path).line
            if _id(one) in taken:
                message = f"the instance {_id(one)} is already given on line {taken[_id(one)]}"
                fix = "remove one, or give each an `id:` of its own"
                problems.append(Problem(file, line, dotted(path), message, fix))
            taken.setdefault(_id(one), line)
    return problems


def _oversize(content: FileFleet, node: Node, file: str, limits: Limits) -> list[Problem]:
    line = node.at(("models",)).line
    total = sum(len(model.instances) for model in content.models)
    counts = (("models", len(content.models), limits.models), ("instances", total, limits.instances))
    return [
        Problem(file, line, "models", f"{count:,} {what}, at most {limit:,} are served", "split the fleet")
        for what, count, limit in counts
        if count > limit
    ]


def dump(fleet: Fleet) -> str:
    """The fleet as the text of a fleet file, one instance a line; ``signals`` are not part of it."""
    lines = ["models:" if fleet.models else "models: []"]
    for key, model in fleet.models.items():
        lines.append(f"  - name: {_flow(model.name)}")
        lines.append(f"    namespace: {_flow(model.namespace)}")
        lines.append(f"    objectives: {_flow(_dump_objectives(model))}")
        lines.append(f"    routing: {_flow({'preset': model.preset})}")
        instances = fleet.instances.get(key, ())
        lines.append("    instances:" if instances else "    instances: []")
        lines += [f"      - {_flow(_dump_instance(one))}" for one in instances]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value on one line. Text is left bare only where no YAML reader can take it for anything else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and isinstance(resolve(value), str)
        return value if bare else '"' + "".join(_escaped(char) for char in value) + '"'
    return repr(value)


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char == " " or (char.isprintable() and not char.isspace()) else f"\\U{ord(char):08x}"


def _dump_objectives(model: Model) -> dict[str, Any]:
    values = model.objectives
    entry: dict[str, Any] = {"target": values.target}
    if values.ttft_seconds is not None:
        entry["ttft"] = units.exact(values.ttft_seconds)
        if values.ttft_per_kilo_token_seconds:
            entry["ttftPerKiloToken"] = units.exact(values.ttft_per_kilo_token_seconds)
    if values.itl_seconds is not None:
        entry["itl"] = units.exact(values.itl_seconds)
    return entry


def _dump_instance(one: Instance) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": one.id, "url": one.url, "pool": one.pool, "engine": one.engine}
    entry["role"] = one.role.value
    entry["state"] = one.state.value
    if one.weight != 1.0:
        entry["weight"] = one.weight
    if one.adapters:
        entry["adapters"] = sorted(one.adapters)
    optional = {"dpRank": one.dp_rank, "kvEvents": one.kv_events, "kvReplay": one.kv_replay}
    entry.update({name: value for name, value in optional.items() if value is not None})
    if one.profile is not None:
        entry["profile"] = _dump_profile(one.profile)
    return entry


def _dump_profile(profile: EngineProfile) -> str | dict[str, Any]:
    if presets().get(profile.name) == profile:
        return profile.name
    return {to_camel(item.name): getattr(profile, item.name) for item in fields(EngineProfile)}


def write_atomic(path: Path, fleet: Fleet) -> None:
    """Replace the file at ``path``: a reader sees the old fleet or the new one, never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(dump(fleet))
        os.chmod(name, 0o644)  # the file holds no secret, and mkstemp made it private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


Signature = tuple[int, int, int]  # inode, modification time in ns, size


class FileFleetSource:
    """Watches a fleet file by asking for its modification time every ``poll_seconds``.

    An edit in place is read once the file has stood still for one poll, a replaced file (``write_atomic``) at once.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        poll_seconds: float = 0.2,
        *,
        limits: Limits | None = None,
        report: Callable[[FairleadError], None] | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._limits = limits or Limits()
        self._report = report
        self._fleet: Fleet | None = None
        self.problem: FairleadError | None = None
        self.loaded_at: float | None = None

    async def watch(self) -> AsyncIterator[Fleet]:
        """The present fleet, then one more after every edit that changes it. Raises when the first read fails."""
        done = _signature(self._path)
        yield await self._first()
        pending: Signature | None = None
        while True:
            await asyncio.sleep(self._poll_seconds)
            now = _signature(self._path)
            if now == done:
                pending = None
                continue
            replaced = now is not None and done is not None and now[0] != done[0]
            if now is not None and not replaced and now != pending:
                pending = now
                continue
            done, pending = now, None
            fleet = await self._again()
            if fleet is not None:
                yield fleet

    async def _first(self) -> Fleet:
        self._fleet = await asyncio.to_thread(self._read)
        self.loaded_at = self._clock.now()
        return self._fleet

    async def _again(self) -> Fleet | None:
        """Read after an edit; None when the file is broken or says what it said before."""
        try:
            found = await asyncio.to_thread(self._read)
        except FairleadError as error:
            self.problem = error
            if self._report is not None:
                self._report(error)
            return None
        self.problem = None
        self.loaded_at = self._clock.now()
        last = self._fleet
        if last is None or (found.models, found.instances) == (last.models, last.instances):
            return None
        epoch = last.membership_epoch + (_members(found) != _members(last))
        self._fleet = replace(found, version=last.version + 1, membership_epoch=epoch)
        return self._fleet

    def _read(self) -> Fleet:
        try:
            raw = self._path.read_bytes()
        except OSError as error:
            message = f"cannot read the fleet file {self._path}: {error.strerror or error}"
            raise Unavailable(message, hint="the last good fleet stays in use") from error
        text = decode(raw, file=str(self._path), limits=self._limits)
        return parse(text, file=str(self._path), limits=self._limits)


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _members(fleet: Fleet) -> frozenset[tuple[str, str]]:
    """The instances that homes are computed over: all but the sleeping ones."""
    return frozenset(
        (key, one.id)
        for key, instances in fleet.instances.items()
        for one in instances
        if one.state is not InstanceState.SLEEPING
    )
