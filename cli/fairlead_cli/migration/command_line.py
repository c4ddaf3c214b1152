"""Command lines of vLLM and SGLang as fields of a ModelDeployment."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.api.spec.engine import EngineType
from fairlead.errors import BadInput
from fairlead.manifests.known_flags import flag_problem, is_checked_image

_SHELLS = {"sh", "bash"}
_SEPARATORS = {";", "&&", "||", "|", "&", "\n"}
_SHELL_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_SHELL_EXPRESSION = re.compile(
    r"\$\$\(\w+\)|`[^`]*`|\$\(\((?:[^()]|\([^()]*\))*\)\)|\$\((?!\w+\))(?:[^()]|\([^()]*\))*\)|\$\{\w*+[^\w}][^}]{0,1024}\}"
)
_SHELL_REFERENCE = re.compile(r"\$\((\w+)\)")
"""A variable of the container, which Kubernetes expands; else the shell runs a command."""
_EXPRESSION_MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands for an expression of the shell while a script is split into words."""
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
_NUMBER = re.compile(r"-\d")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_COUNT = re.compile(r"[0-9]{1,9}")
_SET_BY_FAIRLEAD: Final = "Fairlead sets this flag itself"
_SHARED_NAMES: Final = {
    "--model": "model",
    "--served-model-name": "served",
    "--revision": "revision",
    "--tensor-parallel-size": "tensor",
    "--pipeline-parallel-size": "pipeline",
    "--enable-lora": "adapters",
    "--max-lora-rank": "max_rank",
}
_VLLM_NAMES: Final = _SHARED_NAMES | {
    "-tp": "tensor",
    "-pp": "pipeline",
    "--data-parallel-size": "data",
    "-dp": "data",
    "--max-loras": "slots",
    "--kv-transfer-config": "kv_transfer",
}
_SGLANG_NAMES: Final = _SHARED_NAMES | {
    "--model-path": "model",
    "--tp-size": "tensor",
    "--tp": "tensor",
    "--pp-size": "pipeline",
    "--pp": "pipeline",
    "--max-loras-per-batch": "slots",
    "--disaggregation-mode": "role",
    "--disaggregation-transfer-backend": "transfer_backend",
}
KEY_FLAG: Final = "--api-key"
_SEVERAL_NODES: Final = "pools[].parallelism.nodes: Fairlead sets the flags of engines on several nodes itself"
_DROPPED: Final = {
    **dict.fromkeys(
        (
            *("--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless", "--dist-init-addr"),
            *("--data-parallel-size-local", "-dpl", "--data-parallel-address", "-dpa", "--data-parallel-rpc-port"),
            *("-dpp", "--data-parallel-start-rank", "-dpr", "--data-parallel-rank", "--data-parallel-hybrid-lb"),
            *("--data-parallel-external-lb", "--data-parallel-backend", "-dpb"),
        ),
        _SEVERAL_NODES,
    ),
    **dict.fromkeys(
        (
            *("--host", "--port", "--enable-prefix-caching", "--kv-events-config", "--enable-prompt-tokens-details"),
            *("--enable-metrics", "--enable-cache-report", "--disaggregation-bootstrap-port"),
        ),
        _SET_BY_FAIRLEAD,
    ),
    KEY_FLAG: "the gateway checks keys, and a NetworkPolicy protects the engines",
    "--lora-modules": "write a ModelAdapter for each, or mount them and name them in engine.args",
    "--enable-sleep-mode": "Fairlead sets it when spec.autoscaling.sleep is there",
    "--distributed-executor-backend": "Fairlead starts engines on several nodes without Ray",
    **dict.fromkeys(
        ("--ssl-certfile", "--ssl-keyfile", "--enable-ssl-refresh"), "Fairlead calls its engines without TLS"
    ),
}
_TRANSFERS: Final = {"NixlConnector": "NIXL", "MooncakeConnector": "Mooncake"}
_SEVERAL: Final = "MultiConnector"
_SGLANG_TRANSFERS: Final = {"nixl": "NIXL", "mooncake": "Mooncake"}


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """The arguments of an engine.

    program: VLLM or SGLang; None when the image's entry point decides.
    surroundings: True if a shell script had more commands, which are not in `arguments`.
    variables: variables of the shell in the arguments.
    references: names in the `$(NAME)` of a shell script, which are variables of the container or
        commands.
    assignments: variables that the command line sets for the engine.
    """

    program: str | None
    arguments: tuple[str, ...]
    surroundings: bool = False
    variables: frozenset[str] = frozenset()
    references: frozenset[str] = frozenset()
    assignments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of a command line: its name with dashes, its values, and its words as written."""

    name: str
    values: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def value(self) -> str | None:
        """The first value; None without one."""
        return self.values[0] if self.values else None


def engine_command(command: Sequence[str], args: Sequence[str]) -> EngineCommand:
    """Returns the engine's arguments in a container's command and args.

    Raises BadInput if a command is there and none of its programs is an engine, and for arguments
    that a shell computes.
    """
    words = [*command, *args]
    if not command:
        return EngineCommand(None, tuple(args)) if not _has_program(args) else _find_program([words])
    shell = command[0].rsplit("/", 1)[-1]
    if shell in _SHELLS and len(words) > 2 and words[1].startswith("-") and "c" in words[1]:
        script = next((word for word in words[2:] if word != "--"), "")
        return _find_script_program(script)
    return _find_program([words])


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[Flag]]:
    """Returns the arguments before the first flag, and the flags with their values."""
    positionals: list[str] = []
    flags: list[Flag] = []
    words: list[str] = []
    for word in (*arguments, "--"):
        if not word.startswith("-") or _NUMBER.match(word):
            (words if words else positionals).append(word)
            continue
        if words:
            flags.append(_to_flag(words))
        words = [word]
    return positionals, flags


def split_shared(lists: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Returns the flags that all lists of flags have, and the others of each."""
    groups = [[flag.words for flag in split_flags(words)[1]] for words in lists]
    shared = [words for words in groups[0] if all(words in others for others in groups[1:])]
    own = [[word for words in group if words not in shared for word in words] for group in groups]
    return [word for words in shared for word in words], own


def _to_flag(words: list[str]) -> Flag:
    name, equals, first = words[0].partition("=")
    values = ([first] if equals else []) + words[1:]
    return Flag(name.replace("_", "-"), tuple(values), tuple(words))


def _has_program(words: Sequence[str]) -> bool:
    return any(_program_end(words, start) is not None for start in range(len(words)))


def _find_program(commands: Sequence[Sequence[str]]) -> EngineCommand:
    for words in commands:
        for start in range(len(words)):
            found = _program_end(words, start)
            if found is not None:
                program, end = found
                assigned = [word.split("=", 1) for word in words[:start] if _ASSIGNMENT.match(word)]
                return EngineCommand(program, tuple(words[end:]), len(commands) > 1, assignments=dict(assigned))
    raise BadInput("the command starts neither vLLM nor SGLang", hint="write the model by hand, with `type: Custom`")


def _program_end(words: Sequence[str], start: int) -> tuple[str, int] | None:
    """Returns the program that begins at `start`, and the index of its first argument."""
    word = words[start].rsplit("/", 1)[-1]
    following = words[start + 1] if start + 1 < len(words) else ""
    if word == "vllm" and following == "serve":
        return "VLLM", start + 2
    if word == "-m" and following.startswith("vllm.entrypoints.openai"):
        return "VLLM", start + 2
    if word == "-m" and following == "sglang.launch_server":
        return "SGLang", start + 2
    return None


def _find_script_program(script: str) -> EngineCommand:
    """Returns the engine of a shell script. Its variables become Kubernetes' `$(NAME)`.

    Raises BadInput for an argument that the shell computes, since the engine has no shell.
    """
    expressions: list[str] = []

    def mark(found: re.Match[str]) -> str:
        expressions.append(found[0])
        return f"\ue000{len(expressions) - 1}\ue001"

    command = _find_program(_split_script(_SHELL_EXPRESSION.sub(mark, script)))
    arguments: list[str] = []
    variables: set[str] = set()
    references: set[str] = set()
    given = [*command.arguments, *command.assignments.values()]
    for word in given:
        marked = _EXPRESSION_MARK.search(word)
        if marked is not None:
            message = f"the shell computes {expressions[int(marked[1])]}, and Fairlead's engines have no shell"
            raise BadInput(message, hint="write its value in the place of it")
        references.update(_SHELL_REFERENCE.findall(word))
        variables.update(name for found in _SHELL_VARIABLE.findall(word) for name in found if name)
        arguments.append(_SHELL_VARIABLE.sub(lambda found: f"$({found[1] or found[2]})", word))
    count = len(command.arguments)
    assigned = dict(zip(command.assignments, arguments[count:], strict=True))
    return EngineCommand(
        command.program,
        tuple(arguments[:count]),
        command.surroundings,
        frozenset(variables),
        frozenset(references),
        assigned,
    )


def _split_script(script: str) -> list[list[str]]:
    """Returns the commands of a shell script as words."""
    joined = _COMMENT.sub("", script.replace("\\\n", " "))
    lexer = shlex.shlex(joined.replace("\n", " ; "), posix=True, punctuation_chars=";|&")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise BadInput(f"the shell script cannot be read: {error}", hint="give command and args as a list") from error
    commands: list[list[str]] = [[]]
    for word in words:
        if word in _SEPARATORS:
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


@dataclass(slots=True)
class EngineFlags:
    """The meaning of an engine's flags in a ModelDeployment.

    kept: words for `engine.args`.
    dropped: flag to reason.
    model: the model as the command line names it; empty if it does not.
    transfer: NIXL or Mooncake, when the engine hands KV to another one.
    offload: spec.kvCache.offload.
    """

    kept: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    model: str = ""
    served_names: list[str] = field(default_factory=list)
    revision: str = ""
    parallelism: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, Any] | None = None
    transfer: str | None = None
    transfer_words: list[str] = field(default_factory=list)
    offload: dict[str, Any] | None = None


def read_flags(arguments: Sequence[str], engine_type: str, image: str = "") -> EngineFlags:
    """Returns the meaning of an engine's arguments.

    image: that the engine runs in; empty for the chart's. Flags that its release lacks are dropped.
    """
    engine = EngineType(engine_type)
    positionals, flags = split_flags(arguments)
    read = EngineFlags(model=positionals[0] if positionals else "")
    names = _SGLANG_NAMES if engine_type == "SGLang" else _VLLM_NAMES
    for flag in flags:
        if flag.name in _DROPPED:
            read.dropped[flag.name] = _DROPPED[flag.name]
        elif flag.name not in names or not _apply(read, names[flag.name], flag):
            problem = flag_problem(engine, flag.name, flag.value) if is_checked_image(engine, image) else ""
            # Some systems write switches with a value; engines have a pair of flags instead.
            if problem and flag.value is not None and flag.value.lower() in ("true", "false"):
                read.kept.append(flag.name if flag.value.lower() == "true" else f"--no-{flag.name.removeprefix('--')}")
            elif problem:
                read.dropped[flag.name] = problem
            else:
                read.kept += flag.words
    return read


def _apply(read: EngineFlags, meaning: str, flag: Flag) -> bool:
    """Stores the meaning of a flag. Returns False if the flag must stay as it is."""
    value = flag.value or ""
    match meaning:
        case "model":
            read.model = value
        case "served":
            read.served_names = list(flag.values)
        case "revision":
            read.revision = value
        case "adapters":
            read.adapters = read.adapters or {}
        case "kv_transfer":
            return _apply_kv_transfer(read, value, flag.words)
        case "role":
            pass
        case "transfer_backend":
            read.transfer = _SGLANG_TRANSFERS.get(value)
            return read.transfer is not None
        case _:
            if _COUNT.fullmatch(value) is None:
                return False
            _apply_number(read, meaning, int(value))
    return True


def _apply_number(read: EngineFlags, meaning: str, number: int) -> None:
    if meaning in ("slots", "max_rank"):
        read.adapters = (read.adapters or {}) | {"slots" if meaning == "slots" else "maxRank": number}
    elif number > 1:
        read.parallelism[meaning] = number


def _apply_kv_transfer(read: EngineFlags, value: str, words: Sequence[str]) -> bool:
    """Stores the meaning of `--kv-transfer-config`. Returns False if a ModelDeployment has none."""
    try:
        config = json.loads(value)
    except json.JSONDecodeError:
        return False
    if not isinstance(config, Mapping) or "kv_connector" not in config:
        return False
    extra = config.get("kv_connector_extra_config")
    parts = extra.get("connectors") if isinstance(extra, Mapping) and config["kv_connector"] == _SEVERAL else [config]
    if not isinstance(parts, list) or not all(_apply_connector(read, part) for part in parts):
        read.transfer = read.offload = None
        return False
    if read.transfer is not None:
        read.transfer_words = list(words)
    return True


def _apply_connector(read: EngineFlags, config: object) -> bool:
    """Stores the meaning of one connector of vLLM. Returns False if a ModelDeployment has none."""
    if not isinstance(config, Mapping):
        return False
    connector, extra = config.get("kv_connector"), config.get("kv_connector_extra_config")
    if connector in _TRANSFERS and read.transfer is None:
        read.transfer = _TRANSFERS[connector]
        return True
    size = extra.get("cpu_bytes_to_use") if isinstance(extra, Mapping) else None
    if connector == "OffloadingConnector" and isinstance(size, int) and read.offload is None:
        read.offload = {"type": "Native", "memory": _format_bytes(size)}
        return True
    return False


def _format_bytes(size: int) -> str:
    return f"{size >> 30}Gi" if size % (1 << 30) == 0 else f"{size >> 20}Mi" if size % (1 << 20) == 0 else str(size)
