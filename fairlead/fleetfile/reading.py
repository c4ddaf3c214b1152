"""Fleet file → Fleet: every problem is found, each with line, field and fix."""

from pydantic import ValidationError

from fairlead.documents import Node, documents, dotted
from fairlead.errors import ManifestError, Problem
from fairlead.fleet import TRANSFERS, Access, Fleet, Instance, Model, Role, served_as
from fairlead.fleetfile.schema import FileFleet, FileInstance, FileModel
from fairlead.limits import Limits


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
        content = FileFleet.model_validate(node.plain(), by_alias=True, by_name=False)
    except ValidationError as error:
        from fairlead.findings import findings  # most files are right

        raise ManifestError(tuple(findings(error, FileFleet, node, file))) from error
    problems = (
        _duplicates(content, node, file) + _unpaired(content, node, file) + _oversize(content, node, file, limits)
    )
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
    return Model(item.namespace, item.name, item.objectives.values(), item.routing.preset.value, wakes=item.wakes)


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
            transfer=one.kv_transfer or item.kv_transfer,
            bootstrap=one.bootstrap,
            pull=one.kv_pull.value() if one.kv_pull is not None else None,
            access=_access(item, one),
            served_name=served_as(one.served_model_name or item.served_model_name, item.name),
        )
        for one in item.instances
    ]
    return tuple(sorted(values, key=lambda instance: instance.id))


def _access(item: FileModel, one: FileInstance) -> Access:
    """What the instance says, else what its model says, each of the two on its own."""
    tls, auth = one.tls or item.tls, one.auth or item.auth
    return Access(
        ca_file=tls.ca_file if tls is not None else None,
        token_env=auth.token_env if auth is not None else None,
        token_file=auth.token_file if auth is not None else None,
    )


def _id(one: FileInstance) -> str:
    """The id given, else ``<host>/<port>/<rank>``: it does not change when other lines of the file do."""
    if one.id is not None:
        return one.id
    host, port = one.url.partition("://")[2].rsplit(":", 1)
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


def _unpaired(content: FileFleet, node: Node, file: str) -> list[Problem]:
    """Prefill instances that say nothing of how they hand over: they would never get a request."""
    problems: list[Problem] = []
    for m, model in enumerate(content.models):
        for i, one in enumerate(model.instances):
            if one.role is Role.PREFILL and not (one.kv_transfer or model.kv_transfer):
                path: tuple[str | int, ...] = ("models", m, "instances", i, "role")
                message = "a Prefill instance hands its work over, and nothing says how"
                fix = f"add `kvTransfer: {' | '.join(TRANSFERS)}` to the instance or its model"
                problems.append(Problem(file, node.at(path).line, dotted(path), message, fix))
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
