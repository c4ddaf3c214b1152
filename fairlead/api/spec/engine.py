"""`spec.engine`: the program that serves the model."""

from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, ClassVar, Final

from pydantic import Field

from fairlead.api.spec.environment import EnvironmentVariable
from fairlead.api.strict_model import Rule, StrictModel, api_field, api_list
from fairlead.api.value_types import Choice, Int32, MediaDomain, RequestField, RequestHeader, RequestPath, Subdomain
from fairlead.fleet.model import RequestPolicy, UnknownFields

ANY_DOMAIN: Final = "*"
"""The entry of `allowedMediaDomains` that stands for all domains; it is alone in its list."""

_CUSTOM_ONLY_MESSAGE = "{} is for engines of type Custom; Fairlead sets {} of the others"

_PRIORITY_OPTIONS = ("--scheduling-policy=priority", "--enable-priority-scheduling")


class EngineType(StrEnum):
    """The program that serves the model."""

    VLLM = "VLLM"
    SGLANG = "SGLang"
    LLAMA_CPP = "LlamaCpp"
    TRTLLM = "TRTLLM"
    SIM = "Sim"
    CUSTOM = "Custom"
    EXTERNAL = "External"
    OPENAI = "OpenAI"

    @property
    def label(self) -> str:
        return self.value.lower()


class PullSecret(StrictModel):
    """A Secret in the same namespace with credentials for an image registry."""

    name: Annotated[Subdomain, api_field("name of the Secret", "registry")]


_NOT_RUN: Final = (EngineType.EXTERNAL, EngineType.OPENAI)
"""Engines that Fairlead does not run."""


def _external_violation(engine: "Engine") -> tuple[str, ...] | bool:
    """Returns the path of the first field that an external engine must not have, or False."""
    fields = ("image", "command", "args", "env", "image_pull_secrets", "port", "health_path")
    name = next((name for name in fields if getattr(engine, name)), None)
    return (Engine.model_fields[name].alias or name,) if engine.type in _NOT_RUN and name else False


def _custom_only_rule(field: str, attribute: str, known_part: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || self.type in ['Custom', 'External', 'OpenAI']",  # the last two have their own rule
        message=_CUSTOM_ONLY_MESSAGE.format(field, known_part),
        fix=f"remove {field}, or write `type: Custom`",
        at=(field,),
        violation=lambda engine: (
            getattr(engine, attribute) not in (None, []) and engine.type not in (EngineType.CUSTOM, *_NOT_RUN)
        ),
    )


def _orders_by_priority(args: list[str]) -> bool:
    options = [*args, *[f"{name}={value}" for name, value in pairwise(args)]]
    return any(option in options for option in _PRIORITY_OPTIONS)


class Engine(StrictModel):
    """The program that serves the model."""

    unique: ClassVar[Mapping[str, str]] = {"env": "name", "image_pull_secrets": "name"}
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(self.type in ['External', 'OpenAI']) || !(has(self.image) || has(self.command) && self.command.size() > 0 || "
            "has(self.args) && self.args.size() > 0 || has(self.env) && self.env.size() > 0 || has(self.imagePullSecrets) && "
            "self.imagePullSecrets.size() > 0 || has(self.port) || has(self.healthPath))",
            message="Fairlead does not run an external engine and cannot change how it runs",
            fix="leave only type, and give pools endpoints or a selector",
            violation=_external_violation,
        ),
        Rule(
            cel="self.type != 'Custom' || has(self.image)",
            message="an engine of type Custom needs an image",
            fix="add `image:`, and `command:` unless the image has the right one",
            violation=lambda engine: engine.type is EngineType.CUSTOM and engine.image is None,
        ),
        Rule(
            cel="self.type != 'LlamaCpp' || has(self.image)",
            message="an engine of type LlamaCpp needs an image: builds differ by accelerator",
            fix="add `image:` with a server image of llama.cpp",
            violation=lambda engine: engine.type is EngineType.LLAMA_CPP and engine.image is None,
        ),
        Rule(
            cel="self.type != 'TRTLLM' || has(self.image)",
            message="an engine of type TRTLLM needs an image: Fairlead has no default",
            fix="add `image:` with a release image of TensorRT-LLM",
            violation=lambda engine: engine.type is EngineType.TRTLLM and engine.image is None,
        ),
        _custom_only_rule("command", "command", "the command"),
        _custom_only_rule("port", "port", "the port"),
        _custom_only_rule("healthPath", "health_path", "the health path"),
        Rule(
            cel="!has(self.allowedMediaDomains) || self.allowedMediaDomains.size() == 0 || self.type in ['VLLM', 'SGLang']",
            message="allowedMediaDomains is for engines of type VLLM and SGLang; Fairlead knows no such switch of others",
            fix="remove allowedMediaDomains, and restrict the engine by its own args",
            at=("allowedMediaDomains",),
            violation=lambda engine: (
                bool(engine.allowed_media_domains) and engine.type not in (EngineType.VLLM, EngineType.SGLANG)
            ),
        ),
        Rule(
            cel="!has(self.allowedMediaDomains) || !('*' in self.allowedMediaDomains) || self.allowedMediaDomains.size() == 1",
            message="`*` stands for all domains and makes the others meaningless",
            fix="leave `*` alone in the list, or remove it",
            at=("allowedMediaDomains",),
            violation=lambda engine: (
                ANY_DOMAIN in engine.allowed_media_domains and len(engine.allowed_media_domains) > 1
            ),
        ),
    )

    type: Annotated[
        Choice[EngineType],
        api_field(
            "VLLM; SGLang; LlamaCpp, which loads GGUF files; TRTLLM, the server of TensorRT-LLM; Sim, the "
            "simulated engine; Custom, your own image and command with OpenAI's protocol; External: engines that already "
            "run, found by address or label; or OpenAI: an OpenAI-compatible API that others run outside the cluster. "
            "Local mode simulates all kinds but the last two by default",
            "VLLM",
        ),
    ] = EngineType.VLLM
    image: Annotated[
        str | None,
        api_field(
            "container image; left out = the installation's image for this type",
            "vllm/vllm-openai:v0.11.0",
            min_length=1,
            max_length=1024,
            pattern=r"^\S+$",
        ),
    ] = None
    command: list[Annotated[str, Field(min_length=1, max_length=4096)]] = api_list(
        "command of a custom engine's container, followed by args; left out = that of the image. $(MODEL_PATH), "
        "$(MODEL_NAME) and $(PORT) are replaced by Fairlead's values",
        '["python3", "-m", "my_engine", "--port", "$(PORT)"]',
        max_length=64,
    )
    args: list[Annotated[str, Field(min_length=1, max_length=4096)]] = api_list(
        "appended to the engine's command line; a simulated VLLM accepts those that affect the simulation",
        '["--max-model-len=32768"]',
        max_length=128,
    )
    env: list[EnvironmentVariable] = api_list(
        "environment of the engine's process",
        "[{name: VLLM_LOGGING_LEVEL, value: WARNING}]",
        max_length=128,
        key="name",
    )
    image_pull_secrets: list[PullSecret] = api_list(
        "Secrets for the image's registry, in addition to the installation's",
        "[{name: registry}]",
        max_length=16,
        key="name",
    )
    port: Annotated[Int32 | None, api_field("port of a custom engine; left out = 8000", "8000", ge=1, le=65_535)] = None
    health_path: Annotated[
        str | None,
        api_field(
            "path that responds with 200 once a custom engine serves; left out = /health",
            "/health",
            min_length=1,
            max_length=256,
            pattern=r"^/[^\s?#]*$",
        ),
    ] = None

    unknown_fields: Annotated[
        Choice[UnknownFields] | None,
        api_field(
            "body fields that neither the engine nor the OpenAI API has. Pass: they reach the engine; "
            "Refuse: 400; left out = Pass, for OpenAI Refuse",
            "Refuse",
        ),
    ] = None
    allowed_fields: list[RequestField] = api_list(
        "body fields that clients may set although Fairlead refuses them, such as priority and lora_path",
        "[priority]",
        max_length=64,
    )

    allowed_paths: list[RequestPath] = api_list(
        "paths under /v1 that clients may use, with GET and POST, in addition to those of the engine's API; "
        "a final /* stands for all paths below",
        "[/v1/files, /v1/responses/*]",
        max_length=64,
    )

    allowed_headers: list[RequestHeader] = api_list(
        "headers of clients that reach the engines, besides those that always do, such as accept and "
        "x-session-id; names in lower case",
        "[x-experiment]",
        max_length=32,
    )

    allowed_media_domains: list[MediaDomain] = api_list(
        "hosts from which VLLM and SGLang fetch images, audio and videos that requests name by URL. "
        "Left out = none: requests send them as data: URLs; [*] = any host, also one inside the cluster",
        "[images.example.com]",
        max_length=64,
    )

    def to_request_policy(self) -> RequestPolicy:
        """Returns the policy on what of a client's request may reach the engines."""
        engines = frozenset({self.type.label})
        return RequestPolicy(
            engines,
            self.unknown_fields or UnknownFields.default_of(engines),
            frozenset(self.allowed_fields),
            frozenset(self.allowed_paths),
            frozenset(self.allowed_headers),
            sets_priority=_orders_by_priority(self.args),
        )
