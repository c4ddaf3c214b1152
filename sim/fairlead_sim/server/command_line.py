"""The command line of the simulated engine; flags that vLLM has, too, have its names."""

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput, SettingsError
from fairlead_sim.engine.kv_event_publisher import KvEventsSettings
from fairlead_sim.kv_transfer import connector as transfer
from fairlead_sim.runtime import fault_injection as faults
from fairlead_sim.runtime.lora_adapters import parse_adapter
from fairlead_sim.runtime.settings import ApiSurface, EngineSettings

_SURFACE_FLAGS = {
    "prompt_tokens_details": ("--enable-prompt-tokens-details", "cached_tokens in usage"),
    "request_id_headers": ("--enable-request-id-headers", "x-request-id on every answer"),
    "server_load_tracking": ("--enable-server-load-tracking", "/load counts"),
    "scale_out": ("--enable-scale-out", "render endpoints and /inference/v1/generate"),
    "dev_mode": ("--dev-mode", "what VLLM_SERVER_DEV_MODE=1 adds: /sleep, /pause, /server_info and others"),
    "runtime_lora": ("--runtime-lora", "what VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 adds: load and unload adapters"),
    "tokenizer_info": ("--enable-tokenizer-info-endpoint", "/tokenizer_info"),
    "auto_tool_choice": ("--enable-auto-tool-choice", "tools, and the calls that a reply has or must have"),
    "response_store": ("--response-store", "what VLLM_ENABLE_RESPONSES_API_STORE=1 adds; default: off"),
    "reasoning_parser": ("--reasoning-parser", "<think>…</think> at the start of a reply is reasoning; default: off"),
}


@dataclass(frozen=True, slots=True)
class EngineProcessOptions:
    """The options of one process."""

    host: str
    port: int
    count: int
    settings: EngineSettings
    faults: tuple[tuple[int | None, faults.Fault], ...]


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes free ports")
    parser.add_argument("--count", type=int, default=1, help="engines in this process, on successive ports")
    parser.add_argument("--model", default="sim", help="the model that /v1/models shows as root")
    parser.add_argument("--served-model-name", nargs="+", help="names that requests may use; responses show the first")
    parser.add_argument("--profile", default="tiny-cpu", help="a known profile, or its fields as JSON")
    parser.add_argument("--speed", type=float, default=1.0, help="factor on the speed of the profile")
    _add_reply_arguments(parser)
    parser.add_argument("--block-tokens", "--block-size", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=32_768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--task", choices=("generate", "embed", "both"), default="both", help="embed: vectors and scores"
    )
    parser.add_argument("--scheduling-policy", choices=("fcfs", "priority"), default="fcfs")
    parser.add_argument("--data-parallel-size", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, help="instead of the profile's number")
    parser.add_argument("--max-num-batched-tokens", type=int, help="instead of the profile's number")
    parser.add_argument(
        "--num-gpu-blocks-override", type=int, help="blocks of KV memory, instead of the profile's number"
    )
    parser.add_argument(
        "--reserve-output",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="admit a request only when its output fits, too; otherwise, as in vLLM, full memory causes preemption",
    )
    parser.add_argument("--max-num-queued-reqs", type=int)
    parser.add_argument("--max-num-queued-tokens", type=int)
    parser.add_argument("--lora", "--lora-modules", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument(
        "--missing-lora", action="append", default=[], metavar="PATH", help="path of an adapter that fails to load"
    )
    parser.add_argument("--max-loras", type=int, default=8)
    parser.add_argument("--max-loaded-loras", type=int, help="refuse to load more adapters, as SGLang does")
    parser.add_argument(
        "--lora-load-seconds", type=float, default=0.0, help="how long a load of an adapter takes, at speed 1"
    )
    parser.add_argument("--kv-events", metavar="ENDPOINT", help="tcp://HOST:PORT, or 0 for a free port")
    parser.add_argument("--kv-replay", metavar="ENDPOINT")
    parser.add_argument("--kv-topic")
    parser.add_argument("--kv-encoding", choices=("map", "array"), default="map")
    transfer.add_kv_arguments(parser)
    parser.add_argument(
        "--shutdown-timeout", type=float, default=0.0, help="seconds in which requests may finish after SIGTERM"
    )
    parser.add_argument(
        "--on-sigterm",
        choices=("abort", "error", "silence"),
        help="the outcome of requests that cannot finish; the real engine does all three; "
        "default: abort, and silence after a shutdown timeout",
    )
    parser.add_argument(
        "--wake-seconds", type=float, default=0.0, help="how long /wake_up takes after sleep level 1, at speed 1"
    )
    parser.add_argument(
        "--reload-seconds", type=float, default=0.0, help="how long reload_weights takes after level 2, at speed 1"
    )
    parser.add_argument("--keep-alive-seconds", type=float, default=5.0)
    parser.add_argument("--embedding-dimensions", type=int, default=384)
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="[N:]KIND[,NAME=VALUE]",
        help=f"arm a failure at engine N or all: {', '.join(faults.FAULT_KINDS)}",
    )
    for name, (flag, help_text) in _SURFACE_FLAGS.items():
        default = getattr(ApiSurface(), name)
        parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=default, help=help_text)


def _add_reply_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answer-length", type=float, default=1.0, help="factor on the length of natural answers")
    parser.add_argument(
        "--reply-markup",
        type=float,
        metavar="SHARE",
        help="replies have markup by themselves, as those of real models: with --reasoning-parser they begin with "
        "reasoning, and this share of those with tools ends in one or two tool calls; default: off",
    )


def parse_engine_options(arguments: argparse.Namespace) -> EngineProcessOptions:
    """Returns the options. Raises SettingsError with the flag's name."""
    host, colon, port = arguments.listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) + arguments.count - 1 > 65_535:
        raise SettingsError(f"{arguments.listen!r} is not HOST:PORT, or the last port is above 65535", field="--listen")
    for flag in (
        "count",
        "speed",
        "answer_length",
        "block_tokens",
        "max_model_len",
        "data_parallel_size",
        "embedding_dimensions",
    ):
        if getattr(arguments, flag) <= 0:
            raise SettingsError("must be positive", field=f"--{flag.replace('_', '-')}")
    for flag in ("wake_seconds", "reload_seconds", "lora_load_seconds"):
        if not 0.0 <= getattr(arguments, flag) < 86_400.0:
            raise SettingsError("must be from 0 to less than 86400 seconds", field=f"--{flag.replace('_', '-')}")
    if arguments.reply_markup is not None and not 0.0 <= arguments.reply_markup <= 1.0:
        raise SettingsError("must be from 0 to 1", field="--reply-markup")
    profile = _with_capacities(parse_profile(arguments.profile), arguments)
    if arguments.max_model_len > profile.kv_tokens:
        message = f"{arguments.max_model_len} tokens do not fit KV memory of {profile.kv_tokens}"
        raise SettingsError(message, field="--max-model-len")
    names = tuple(arguments.served_model_name or [arguments.model])
    try:
        adapters = tuple(parse_adapter(text) for text in arguments.lora)
    except ValueError as error:
        raise SettingsError(str(error), field="--lora") from error
    settings = EngineSettings(
        model=arguments.model,
        served_names=names,
        profile=profile,
        reserve_output=arguments.reserve_output,
        speed=arguments.speed,
        block_tokens=arguments.block_tokens,
        max_model_len=arguments.max_model_len,
        seed=arguments.seed,
        answer_length=arguments.answer_length,
        reply_markup=arguments.reply_markup,
        task=arguments.task,
        scheduling=arguments.scheduling_policy,
        data_parallel=arguments.data_parallel_size,
        max_queued_requests=arguments.max_num_queued_reqs,
        max_queued_tokens=arguments.max_num_queued_tokens,
        adapters=adapters,
        missing_adapters=frozenset(arguments.missing_lora),
        max_adapters=arguments.max_loras,
        max_loaded_adapters=arguments.max_loaded_loras,
        adapter_load_seconds=arguments.lora_load_seconds,
        kv_events=KvEventsSettings(
            _expand_endpoint(arguments.kv_events),
            _expand_endpoint(arguments.kv_replay),
            arguments.kv_topic,
            arguments.kv_encoding,
        ),
        kv_transfer=transfer.parse_kv_settings(arguments),
        surface=ApiSurface(**{name: getattr(arguments, name) for name in _SURFACE_FLAGS}),
        shutdown_timeout=arguments.shutdown_timeout,
        on_sigterm=arguments.on_sigterm,
        wake_seconds=arguments.wake_seconds,
        reload_seconds=arguments.reload_seconds,
        keep_alive_seconds=arguments.keep_alive_seconds,
        embedding_dimensions=arguments.embedding_dimensions,
    )
    return EngineProcessOptions(
        host.strip("[]"), int(port), arguments.count, settings, tuple(map(_parse_fault_argument, arguments.fault))
    )


def parse_profile(text: str) -> EngineProfile:
    """Returns a profile by name or from JSON.

    JSON fields are in snake or camel case; ``base`` names the preset to start from.
    """
    if not text.lstrip().startswith("{"):
        return builtin_profile(text, field="--profile")
    try:
        document = json.loads(text)
        base = document.pop("base", None)
        fields: dict[str, Any] = {} if base is None else msgspec.to_builtins(builtin_profile(base, field="--profile"))
        fields |= {_snake_case(name): value for name, value in document.items()}
        fields.setdefault("name", "custom")
        return msgspec.convert(fields, EngineProfile)
    except (ValueError, AttributeError, msgspec.ValidationError) as error:
        raise SettingsError(f"the profile is invalid: {error}", field="--profile") from error


def _with_capacities(profile: EngineProfile, arguments: argparse.Namespace) -> EngineProfile:
    """Returns the profile with the capacities of the command line."""
    blocks = arguments.num_gpu_blocks_override
    sized = replace(
        profile,
        max_sequences=profile.max_sequences if arguments.max_num_seqs is None else arguments.max_num_seqs,
        step_tokens=profile.step_tokens
        if arguments.max_num_batched_tokens is None
        else arguments.max_num_batched_tokens,
        kv_tokens=profile.kv_tokens if blocks is None else blocks * arguments.block_tokens,
    )
    if min(sized.max_sequences, sized.step_tokens) < 1 or sized.kv_tokens < arguments.block_tokens:
        raise SettingsError("an engine needs room for a block, a sequence and a token a step", field="--profile")
    return sized


def _snake_case(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)


def _expand_endpoint(text: str | None) -> str | None:
    return "tcp://127.0.0.1:0" if text == "0" else text


def _parse_fault_argument(text: str) -> tuple[int | None, faults.Fault]:
    number, colon, rest = text.partition(":")
    try:
        if colon and number.isdecimal():
            return int(number), faults.parse_fault(rest)
        return None, faults.parse_fault(text)
    except BadInput as error:
        raise SettingsError(error.message, field="--fault", hint=error.hint) from error
