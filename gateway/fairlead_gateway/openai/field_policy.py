"""The policy on the top-level fields of request bodies: which of them reach an engine.

- `REMOVED_FIELDS` are used by gateways and engines among themselves. They are cut out of every
  body. Fields of a KV transfer name blocks in another engine's memory. Forty bytes of them crash a
  vLLM engine, and copied ones fetch the cache of another client. Engines crash when two live
  requests have one id. `kv_cache_report_mode` makes an engine report blocks that it did not store.
  `stream_interval` puts many tokens into an event, and events are counted where a client leaves.
- `REFUSED_FIELDS` change how an engine treats a request compared with others, or make it load
  something. A request with one of them is refused, unless `engine.allowedFields` of its model names
  the field. A field that is null counts as absent.
- Arguments of templates and processors (`is_argument_object`) are objects whose members an engine
  hands to code: `chat_template` in one of them replaces the program that renders each prompt. In
  them pass plain values alone: booleans, numbers, short texts, and a few of them in lists and
  objects. The names of `_PROGRAM_ARGUMENTS` do not pass. `engine.allowedFields` opens an object as
  a whole.
- Token ids that an engine takes as indices without a check would end it for all clients. Prompts of
  token ids are refused for SGLang, and `stop_token_ids` with `min_tokens` for every engine, unless
  `engine.allowedFields` names `input_ids` or `stop_token_ids`.
- Of an API that others run, `ACCOUNT_FIELDS` and tools that its servers run are refused as well:
  they choose a dearer model or tier, or use what belongs to the whole account.
- Parts of messages may hold tensors, or name a picture that the engine has cached (`PART_FIELDS`).
  `special_parts` finds them in any field and at any depth. They are judged like fields, by the name
  `content[].NAME`.
- Media are named by `data:` URLs alone where the engine fetches any other one (`FETCHING_ENGINES`).
- Other fields pass. With `engine.unknownFields: Refuse`, only those pass that the engine or the
  OpenAI API has.

vLLM reads some of these fields in `vllm_xargs` as well, so that object is searched, too. A key
counts in every spelling. A removed or refused one counts each time that it occurs; of the values,
the last one is judged, which is what engines read. Most bodies have only fields that `schemas`
lists as safe; for them nothing is done here.

Source: docs/decisions/0022.

The request fields of the engines and of the OpenAI API, by engine and path.

Written by `scripts/generators/engine_request_fields.py` from the engines' own request models. Do
not edit. `field_policy` says which of them clients may set.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Final

import msgspec

from fairlead.engines.facts import ENGINE_FACTS, EVERY_TABLE, MediaSource, kinds_with
from fairlead.fleet.model import EXTERNAL_API, Model, RequestPolicy, UnknownFields
from fairlead_gateway.dialects.schemas import (
    MEMBERS_DECODER,
    TOOL_KINDS_DECODER,
)
from fairlead_gateway.errors import BadRequest, FieldRefused, UnknownPath
from fairlead_gateway.openai.json_edit import rewrite_members
from fairlead_gateway.openai.validation import check_priority

VERSIONS: Final[dict[str, str]] = {"openai": "3.51.0", "sglang": "0.5.23", "vllm": "0.32.0"}
"""The release of each engine that the fields were read from."""

FIELDS: Final[dict[str, dict[str, str]]] = {
    "openai": {
        "/v1/chat/completions": (
            "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens"
            " max_tokens messages metadata modalities model moderation n parallel_tool_calls prediction"
            " presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort"
            " response_format safety_identifier seed service_tier stop store stream stream_options temperature"
            " tool_choice tools top_logprobs top_p user verbosity web_search_options"
        ),
        "/v1/completions": (
            "best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt"
            " seed stop stream stream_options suffix temperature top_p user"
        ),
        "/v1/embeddings": "dimensions encoding_format input model stream user",
        "/v1/responses": (
            "access_programs background context_management conversation image include input instructions"
            " max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls"
            " previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention"
            " reasoning safety_identifier service_tier store stream stream_options temperature text"
            " tool_choice tools top_logprobs top_p truncation user"
        ),
    },
    "sglang": {
        "/detokenize": "model skip_special_tokens tokens",
        "/tokenize": (
            "add_generation_prompt add_special_tokens chat_template_kwargs continue_final_message messages"
            " model prompt reasoning_effort tool_choice tools"
        ),
        "/v1/chat/completions": (
            "bootstrap_host bootstrap_port bootstrap_room cache_salt chat_template_kwargs"
            " continue_final_message custom_logit_processor custom_params data_parallel_rank"
            " disagg_prefill_dp_rank ebnf extra_key frequency_penalty ignore_eos images_config input_ids"
            " logit_bias logprobs lora_path max_completion_tokens max_dynamic_patch max_tokens messages"
            " min_dynamic_patch min_p min_tokens mm_processor_kwargs model n no_stop_trim parallel_tool_calls"
            " presence_penalty priority reasoning_effort regex repetition_penalty response_format"
            " return_cached_tokens_details return_flat_raw_output_top_logprobs"
            " return_flat_raw_top_logprobs_b64 return_hidden_states return_input_ids_in_sglext"
            " return_meta_info return_output_ids_in_sglext return_prompt_token_ids return_routed_experts"
            " return_sampling_mask return_spec_tokens_details return_token_ids rid routed_dp_rank"
            " routed_experts_start_len sampling_logprobs_mode seed separate_reasoning session_id"
            " session_params skip_special_tokens stop stop_regex stop_token_ids stream stream_options"
            " stream_reasoning task temperature thinking tool_choice tools top_k top_logprobs top_p"
            " use_audio_in_video user video_config watermark"
        ),
        "/v1/classify": "input model priority rid user",
        "/v1/completions": (
            "best_of bootstrap_host bootstrap_port bootstrap_room cache_salt custom_labels"
            " custom_logit_processor custom_params data_parallel_rank disagg_prefill_dp_rank ebnf echo"
            " extra_key frequency_penalty ignore_eos images_config json_schema logit_bias logprobs lora_path"
            " max_tokens min_p min_tokens mm_processor_kwargs model n no_stop_trim presence_penalty priority"
            " prompt regex repetition_penalty response_format return_cached_tokens_details"
            " return_hidden_states return_routed_experts return_spec_tokens_details return_token_ids rid"
            " routed_dp_rank routed_experts_start_len seed session_id session_params skip_special_tokens stop"
            " stop_regex stop_token_ids stream stream_options suffix temperature top_k top_p user watermark"
        ),
        "/v1/embeddings": (
            "dimensions embed_override_token_id embed_overrides encoding_format input lora_path model priority rid user"
        ),
        "/v1/messages": (
            "betas bootstrap_host bootstrap_port bootstrap_room disagg_prefill_dp_rank max_tokens messages"
            " metadata model output_config routed_dp_rank stop_sequences stream system temperature thinking"
            " tool_choice tools top_k top_p"
        ),
        "/v1/messages/count_tokens": "betas messages model output_config system thinking tool_choice tools",
        "/v1/rerank": "documents instruct query return_documents top_n",
        "/v1/responses": (
            "background bootstrap_host bootstrap_port bootstrap_room cache_salt chat_template_kwargs"
            " data_parallel_rank disagg_prefill_dp_rank extra_key frequency_penalty include input instructions"
            " max_output_tokens max_tool_calls metadata min_p model parallel_tool_calls presence_penalty"
            " previous_response_id priority reasoning repetition_penalty request_id routed_dp_rank"
            " service_tier session_id stop store stream temperature text tool_choice tools top_k top_logprobs"
            " top_p truncation user"
        ),
        "/v1/score": (
            "apply_softmax embed_override_token_id item_embed_overrides item_first items label_token_ids"
            " model query query_embed_overrides return_pooled_hidden_states return_token_logprobs"
            " score_extraction_token temperature"
        ),
    },
    "vllm": {
        "/detokenize": "model tokens",
        "/tokenize": (
            "add_generation_prompt add_special_tokens chat_template chat_template_kwargs"
            " continue_final_message media_io_kwargs messages mm_processor_kwargs model prompt"
            " return_token_strs tools"
        ),
        "/v1/chat/completions": (
            "add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template"
            " chat_template_kwargs continue_final_message documents ec_transfer_params echo frequency_penalty"
            " ignore_eos include_reasoning include_stop_str_in_output kv_transfer_params length_penalty"
            " logit_bias logprob_token_ids logprobs max_completion_tokens max_tokens media_io_kwargs messages"
            " min_p min_tokens mm_payload mm_processor_kwargs model n parallel_tool_calls presence_penalty"
            " priority prompt_logprobs reasoning_effort repetition_detection repetition_penalty request_id"
            " response_format return_mm_kwargs return_prompt_text return_token_ids return_token_offsets"
            " return_tokens_as_token_ids routed_experts_prompt_start seed session_id skip_special_tokens"
            " spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options"
            " structured_outputs temperature thinking_token_budget tool_choice tools top_k top_logprobs top_p"
            " truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking"
        ),
        "/v1/chat/completions/batch": (
            "add_generation_prompt best_of cache_salt chat_template chat_template_kwargs"
            " continue_final_message early_stopping echo frequency_penalty guided_decoding_backend"
            " include_reasoning include_stop_str_in_output length_penalty logit_bias logprob_token_ids"
            " logprobs max_completion_tokens max_tokens media_io_kwargs messages min_p mm_processor_kwargs"
            " model n presence_penalty priority repetition_penalty request_id response_format return_token_ids"
            " return_tokens_as_token_ids seed stop structured_outputs temperature tool_choice top_k"
            " top_logprobs top_p use_beam_search user watermarking"
        ),
        "/v1/classify": (
            "add_generation_prompt add_special_tokens cache_salt chat_template chat_template_kwargs"
            " continue_final_message input media_io_kwargs messages mm_processor_kwargs model padding priority"
            " request_id truncate_prompt_tokens truncation_side use_activation user"
        ),
        "/v1/completions": (
            "add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params echo"
            " frequency_penalty ignore_eos include_stop_str_in_output kv_transfer_params length_penalty"
            " logit_bias logprob_token_ids logprobs max_tokens min_p min_tokens mm_payload model n"
            " presence_penalty priority prompt prompt_embeds prompt_logprobs repetition_detection"
            " repetition_penalty request_id response_format return_mm_kwargs return_token_ids"
            " return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed session_id"
            " skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval"
            " stream_options structured_outputs suffix temperature thinking_token_budget top_k top_p"
            " truncate_prompt_tokens truncation_side use_beam_search user vllm_xargs watermarking"
        ),
        "/v1/embeddings": (
            "add_generation_prompt add_special_tokens cache_salt chat_template chat_template_kwargs"
            " continue_final_message dimensions embed_dtype encoding_format endianness input media_io_kwargs"
            " messages mm_processor_kwargs model padding priority request_id truncate_prompt_tokens"
            " truncation_side use_activation user"
        ),
        "/v1/messages": (
            "cache_salt chat_template_kwargs ec_transfer_params kv_transfer_params max_tokens messages"
            " metadata mm_payload model output_config return_mm_kwargs stop_sequences stream system"
            " temperature thinking tool_choice tools top_k top_p vllm_xargs watermarking"
        ),
        "/v1/messages/count_tokens": "chat_template_kwargs messages model output_config system thinking tool_choice tools",
        "/v1/pooling": (
            "add_generation_prompt add_special_tokens cache_salt chat_template chat_template_kwargs"
            " continue_final_message data dimensions embed_dtype encoding_format endianness input"
            " media_io_kwargs messages mm_processor_kwargs model padding priority request_id task"
            " truncate_prompt_tokens truncation_side use_activation user"
        ),
        "/v1/rerank": (
            "cache_salt chat_template_kwargs documents instruction max_tokens_per_doc max_tokens_per_query"
            " mm_processor_kwargs model padding priority query request_id top_n truncate_prompt_tokens"
            " truncation_side use_activation user"
        ),
        "/v1/responses": (
            "background cache_salt chat_template_kwargs ec_transfer_params enable_response_messages"
            " frequency_penalty ignore_eos include include_reasoning include_stop_str_in_output input"
            " instructions kv_transfer_params logit_bias max_output_tokens max_tool_calls media_io_kwargs"
            " metadata min_p mm_payload mm_processor_kwargs model parallel_tool_calls presence_penalty"
            " previous_input_messages previous_response_id priority prompt prompt_cache_key reasoning"
            " repetition_penalty request_id return_mm_kwargs seed service_tier session_id skip_special_tokens"
            " stop stop_token_ids store stream structured_outputs temperature text tool_choice tools top_k"
            " top_logprobs top_p truncation user vllm_xargs watermarking"
        ),
        "/v1/score": (
            "cache_salt chat_template_kwargs data_1 data_2 documents instruction items max_tokens_per_doc"
            " max_tokens_per_query mm_processor_kwargs model padding priority queries request_id text_1 text_2"
            " truncate_prompt_tokens truncation_side use_activation user"
        ),
    },
}
"""Names separated by spaces."""


Members = Mapping[str, msgspec.Raw]

REMOVED_FIELDS: Final = frozenset(
    {
        *("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"),
        *("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"),
        *("data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank"),
        *("disaggregated_params", "id_slot", "stream_interval"),
        *("request_id", "rid"),
    }
)
REFUSED_FIELDS: Final[Mapping[str, str]] = {
    "priority": "sets the order of requests in the engine",
    "chat_template": "is a program that the engine runs for each prompt",
    "custom_logit_processor": "runs code of the client in the engine",
    "logits_processors": "runs code of the client in the engine",
    "lora_path": "chooses an adapter by its path",
    "lora_request": "chooses an adapter by its path",
    "lora": "chooses adapters by their numbers in the engine",
    "n_predict": "replaces max_tokens in the engine, and is not counted in limits",
    "n_cmpl": "replaces n in the engine, and is not counted in limits",
    "prompt_embeds": "is a tensor that the engine loads",
    "mm_payload": "holds tensors that the engine loads",
    "session_params": "continues the state of another request",
    "stop_regex": "is an expression that the engine's scheduler searches after every token",
    "grammar_triggers": "are expressions that the engine searches after every token",
    "chat_parser": "is a parser that the engine runs on the answer",
    "input_ids": "is a prompt of token ids, which the engine does not check",
    "prompt_token_ids": "replaces the prompt by token ids",
    "prompt_token_ids_b64": "replaces the prompt by token ids",
    "embed_overrides": "are tensors that the engine loads",
    "query_embed_overrides": "are tensors that the engine loads",
    "item_embed_overrides": "are tensors that the engine loads",
}
"""The effect of each field, for the error."""

PART_PREFIX: Final = "content[]."
PART_FIELDS: Final[Mapping[str, str]] = {
    f"{PART_PREFIX}uuid": "names a picture in the engine's cache, which all callers share",
    **dict.fromkeys(
        [f"{PART_PREFIX}{kind}_embeds" for kind in ("image", "audio", "video")], "is a tensor that the engine loads"
    ),
}
"""The effect of each field of a part of a message, for the error."""
FETCHING_ENGINES: Final = kinds_with(lambda facts: facts.media is MediaSource.ANY)
_URL_FIELDS: Final = ("image_url", "video_url", "audio_url", "file_url", "source")
"""The fields of parts; the last one is that of `/v1/messages`."""
_URL_SIGNS: Final = (b'_url"', b'"source"')
_PART_NAMES: Final = ("uuid", "image_embeds", "audio_embeds", "video_embeds")
_MEDIA_TYPE: Final = re.compile("image|audio|video|file|media")
"""The types of parts whose `uuid` names what an engine has cached."""
_PART_SIGNS: Final = (b'"uuid"', b'_embeds"')
_ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:5[fF]|[67])")
"""A letter or `_` of a name that is written as an escape."""

ACCOUNT_FIELDS: Final[Mapping[str, tuple[str, tuple[bytes, ...]]]] = {
    **dict.fromkeys(("models", "fallbacks", "provider", "route", "preset"), ("chooses another model or provider", ())),
    **dict.fromkeys(("plugins", "transforms", "web_search_options"), ("has the provider run more than the model", ())),
    **dict.fromkeys(("mcp_servers", "container"), ("has the provider run more than the model", ())),
    "service_tier": ("chooses a tier with another price", (b'"auto"', b'"default"')),
    "store": ("stores data in the account of the operator", (b"false",)),
    "background": ("leaves work in the account of the operator", (b"false",)),
    "previous_response_id": ("reads data in the account of the operator", ()),
    "conversation": ("reads and stores data in the account of the operator", ()),
}
"""The fields by which a caller uses more of an account at an external API than one model.

Each has its effect, for the error, and the values that do nothing; so does null.
"""
BACKGROUND_FIELD: Final = "background"
TOOLS_FIELD: Final = "tools"
_CLIENT_TOOLS: Final = (None, "function", "custom")
"""The types of tools that the client runs itself; None: without a type."""
TOKEN_PROMPT_FIELDS: Final = frozenset({"prompt", "input", "query", "items"})
"""The fields that may hold a prompt as token ids."""
UNCHECKED_STOP_FIELDS: Final = frozenset({"stop_token_ids", "min_tokens"})
"""With both, engines use the ids of the first as indices."""
_ENGINES_WITH_UNCHECKED_PROMPTS: Final = kinds_with(lambda facts: not facts.checks_token_prompts)
_OVERLAY_FIELD: Final = "vllm_xargs"
_ARGUMENT_FIELDS: Final = frozenset(
    {_OVERLAY_FIELD, "chat_template_args", "custom_params", "images_config", "video_config"}
)
_ARGUMENT_SUFFIX: Final = "_kwargs"
MAX_ARGUMENT_BYTES: Final = 4_096
"""The size of an object of arguments, as JSON text."""
_MAX_ARGUMENT_CHARACTERS: Final = 256
_MAX_ARGUMENT_LEVELS: Final = 4
_NO_MAXIMUM: Final = float("inf")
_MAX_PROCESSOR_NUMBER: Final = float(1 << 24)
"""The largest argument of a processor; an engine allocates pixels, frames and samples by it."""
_PROCESSOR_FIELDS: Final = frozenset({"mm_processor_kwargs", "media_io_kwargs", "images_config", "video_config"})
_PROGRAM_ARGUMENTS: Final = frozenset(
    {
        *("chat_template", "tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask"),
        *("padding", "truncation", "max_length", "tools", "documents", "conversation", "messages", "device"),
        *("tokenizer_kwargs", "processor_kwargs", "trust_remote_code", "torch_dtype", "dtype"),
    }
)
"""Names that the call of a template or a processor has itself, or that choose what it runs."""
SEARCHED_FIELDS: Final = REMOVED_FIELDS | {_OVERLAY_FIELD}
"""The fields that make a body be searched and edited."""

_NULL: Final = b"null"
_UNUSED: Final = (_NULL, b"false")
_PRESENT: Final = msgspec.Raw(b"true")
_MEDIA_EFFECT: Final = "names what this engine would fetch from any host, so only data: URLs pass"
_NO_STOP_TOKENS: Final = (_NULL, b"[]")
_NO_MINIMUM: Final = (_NULL, b"0")
_MAX_SHOWN_CHARACTERS: Final = 64
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ENGINE_TABLES: Final = {kind: facts.request_tables for kind, facts in ENGINE_FACTS.items()} | {
    EXTERNAL_API: ("openai",)
}
_ALIASES: Final[Mapping[str, str]] = {
    "/v1/tokenize": "/tokenize",
    "/v1/detokenize": "/detokenize",
    "/v1/chat/completions/render": "/v1/chat/completions",
    "/v1/completions/render": "/v1/completions",
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/score": "/v1/score",
    "/classify": "/v1/classify",
}


def apply_field_policy(body: bytes, members: Members | None, path: str, model: Model) -> bytes:
    """Returns the body as engines get it; every byte of the fields that stay is unchanged.

    members: the top-level fields of the body; None if all of them are listed as safe.
    Raises FieldRefused, which names the field, and BadRequest for a value that is out of range.
    """
    try:
        return _apply(body, members, path, model.requests)
    except FieldRefused as refusal:
        refusal.key = model.key
        raise


def removed_fields(members: Members | None) -> tuple[str, ...]:
    return () if members is None else tuple(sorted([name for name in members if name in REMOVED_FIELDS]))


def _apply(body: bytes, members: Members | None, path: str, policy: RequestPolicy) -> bytes:
    is_strict, is_external = policy.unknown_fields is UnknownFields.REFUSE, EXTERNAL_API in policy.engines
    if policy.engines & FETCHING_ENGINES:
        _check_media_urls(body, policy.allowed_fields)
    if members is None:
        if not is_strict and not is_external:
            return body
        members = MEMBERS_DECODER.decode(body)
    removed = {name for name in members if name in REMOVED_FIELDS}
    for name in members:
        if is_argument_object(name) and name not in policy.allowed_fields:
            _check_arguments(name, members[name], policy.allowed_fields)
    for name in REFUSED_FIELDS.keys() & members.keys():
        if bytes(members[name]) == _NULL:
            removed.add(name)
        elif name not in policy.allowed_fields:
            raise _not_allowed(name, REFUSED_FIELDS[name])
        elif name == "priority":
            check_priority(members[name])
    for name in PART_FIELDS.keys() & members.keys():
        setting = name.removeprefix(PART_PREFIX)
        if setting not in policy.allowed_fields:
            raise _not_allowed(name, PART_FIELDS[name], setting)
    _check_token_ids(members, policy)
    if BACKGROUND_FIELD in members and bytes(members[BACKGROUND_FIELD]) not in _UNUSED and not is_external:
        check_background(policy.allowed_fields)
    if is_external:
        _check_account(members, policy.allowed_fields)
        removed |= {"session_id"} & members.keys()  # of the gateway alone
    if is_strict:
        _check_known(members, path, policy.engines, policy.allowed_fields | removed)
    if removed or _OVERLAY_FIELD in members:
        return remove_fields(body, REMOVED_FIELDS | removed)
    return body


def check_background(allowed: frozenset[str]) -> None:
    """Raises FieldRefused unless a model allows work that goes on after its answer."""
    if BACKGROUND_FIELD not in allowed:
        raise _not_allowed(BACKGROUND_FIELD, "leaves work in the engine behind its answer")


def special_parts(body: bytes) -> dict[str, msgspec.Raw]:
    """Returns the fields in `PART_FIELDS` that some part of a checked body has, wherever it is."""
    found: dict[str, msgspec.Raw] = {}
    for part, is_content in _find_parts(body, _PART_SIGNS):
        for name in _PART_NAMES:
            if part.get(name) is not None and (is_content or name != "uuid" or _MEDIA_TYPE.search(part["type"])):
                found[f"{PART_PREFIX}{name}"] = _PRESENT
    return found


def _may_have(text: bytes, *signs: bytes) -> bool:
    """Returns False if none of the keys is in a text, however it is escaped."""
    for sign in signs:
        if text.find(sign) >= 0:
            return True
    return text.find(b"\\u00") >= 0 and _ESCAPED_LETTER.search(text) is not None


def _find_parts(body: bytes, signs: tuple[bytes, ...]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yields the objects of a body that an engine may take for parts of messages, and whether they
    are in a `content`. Others have a `type`. The arguments of a call are not looked at.

    signs: keys; without one of them, nothing is looked for. A text has them escaped.
    Raises BadRequest for a body that no parser agrees on.
    """
    if not body or not _may_have(body, *signs):
        return
    try:
        rest: list[tuple[Any, bool, bool]] = [(msgspec.json.decode(body), False, True)]
    except _DECODE_ERRORS:
        try:
            MEMBERS_DECODER.decode(body)
        except _DECODE_ERRORS:
            return  # its parser says what is wrong
        raise BadRequest("the body holds a text or a number that is not valid", param=None) from None
    while rest:
        value, is_content, is_body = rest.pop()
        if isinstance(value, list):
            rest += [(item, is_content, False) for item in value if isinstance(item, (dict, list))]
        elif isinstance(value, dict):
            kind = value.get("type")
            if is_content or isinstance(kind, str):
                yield value, is_content
            arguments = "input" if kind == "tool_use" and not is_body else None
            rest += [
                (item, name == "content", False)
                for name, item in value.items()
                if name != arguments and isinstance(item, (dict, list))
            ]


def _check_media_urls(body: bytes, allowed: frozenset[str]) -> None:
    """Raises FieldRefused for media that the engine would fetch, or read from its disk."""
    if allowed.issuperset(_URL_FIELDS):
        return
    for part, _ in _find_parts(body, _URL_SIGNS):
        for name in _URL_FIELDS:
            if name not in allowed and not _is_data_url(part.get(name)):
                raise _not_allowed(f"{PART_PREFIX}{name}", _MEDIA_EFFECT, name)


def _is_data_url(named: object) -> bool:
    url = named.get("url") if isinstance(named, dict) else named
    return url is None or (isinstance(url, str) and url[:5].lower() == "data:")


def check_external_path(path: str, policy: RequestPolicy) -> None:
    """Raises UnknownPath for a path of an external API whose tokens are not counted."""
    if path not in policy.allowed_paths:
        raise UnknownPath(
            "this path is not open to clients of the model, since its tokens are not counted",
            hint="the operator of the model opens paths with engine.allowedPaths",
        )


def are_client_tools(raw: msgspec.Raw) -> bool:
    """Returns True if the client itself runs all tools of a body."""
    try:
        tools = TOOL_KINDS_DECODER.decode(raw)
    except _DECODE_ERRORS:
        return False
    return all(tool.type in _CLIENT_TOOLS for tool in tools or ())


def is_argument_object(name: str) -> bool:
    """Returns True if the field holds arguments that an engine hands to a template, a processor or
    other code.
    """
    return name.endswith(_ARGUMENT_SUFFIX) or name in _ARGUMENT_FIELDS


def has_token_ids(raw: msgspec.Raw) -> bool:
    """Returns True if a prompt, as JSON text, is an array of token ids, or of such arrays."""
    if bytes(memoryview(raw)[:1]) != b"[":
        return False
    text = bytes(raw)
    return b'"' not in text and bool(text.strip(b"[], \t\r\n"))


def remove_fields(body: bytes, names: frozenset[str] | set[str] = REMOVED_FIELDS) -> bytes:
    """Returns a JSON object without these fields, also not in `vllm_xargs`; other bytes stay."""
    return rewrite_members(body, partial(_without, names))


def engine_tables(engine: str) -> list[dict[str, str]]:
    return [FIELDS[name] for name in _ENGINE_TABLES.get(engine, EVERY_TABLE)]


@cache
def _known_by_path(engine: str) -> dict[str, frozenset[str]]:
    names: dict[str, set[str]] = {}
    for table in engine_tables(engine):
        for path, fields in table.items():
            names.setdefault(path, set()).update(fields.split())
    return {path: frozenset(fields) for path, fields in names.items()}


def known_fields(engine: str, path: str) -> frozenset[str] | None:
    """Returns the fields that the engine or the OpenAI API has on a path.

    engine: a type that the table does not know has the fields of all.
    None if the table does not have the path.
    """
    return _known_by_path(engine).get(_ALIASES.get(path, path))


def _check_known(members: Members, path: str, engines: Iterable[str], allowed: frozenset[str] | set[str]) -> None:
    """Raises FieldRefused for the first field that no engine of the model has."""
    known: set[str] = {"session_id"}  # read by the gateway itself
    for engine in engines or ("",):  # without an engine: the fields of all
        fields = known_fields(engine, path)
        if fields is None:
            return  # an engine's own path: its fields are in no table
        known |= fields
    for name in members:
        if name not in known and name not in allowed and name not in PART_FIELDS:
            raise _not_allowed(name if _is_shown(name) else None, "is not a field of this engine's API")


def _is_shown(name: str) -> bool:
    return name.isidentifier() and name.isascii() and len(name) <= _MAX_SHOWN_CHARACTERS


def _check_account(members: Members, allowed: frozenset[str]) -> None:
    """Raises FieldRefused for a field that spends more of an account than one model."""
    for name in ACCOUNT_FIELDS.keys() & members.keys():
        effect, harmless = ACCOUNT_FIELDS[name]
        value = bytes(members[name])
        if name not in allowed and value != _NULL and value not in harmless:
            raise _not_allowed(name, effect)
    if TOOLS_FIELD in members and TOOLS_FIELD not in allowed and not are_client_tools(members[TOOLS_FIELD]):
        raise _not_allowed(TOOLS_FIELD, "has the provider run tools")


def _check_arguments(field: str, raw: msgspec.Raw, allowed: frozenset[str]) -> None:
    """Raises FieldRefused unless all values of an object of arguments are plain."""
    if memoryview(raw).nbytes > MAX_ARGUMENT_BYTES:
        raise _not_allowed(field, f"has more than {MAX_ARGUMENT_BYTES} bytes of arguments for code in the engine")
    try:
        arguments: object = msgspec.json.decode(raw)
    except _DECODE_ERRORS:
        raise _not_allowed(field, "holds a text or a number that is not valid") from None
    if arguments is not None and not isinstance(arguments, dict):
        raise _not_allowed(field, "is not an object of arguments")
    names = _PROGRAM_ARGUMENTS | frozenset(REFUSED_FIELDS) if field == _OVERLAY_FIELD else _PROGRAM_ARGUMENTS
    max_number = _MAX_PROCESSOR_NUMBER if field in _PROCESSOR_FIELDS else _NO_MAXIMUM
    _ArgumentCheck(field, names - allowed, max_number).check(field, arguments, _MAX_ARGUMENT_LEVELS)


class _ArgumentCheck:
    """The check of the values in one object of arguments.

    names: of arguments that do not pass.
    max_number: largest number that passes.
    """

    def __init__(self, field: str, names: frozenset[str], max_number: float) -> None:
        self._field = field
        self._names = names
        self._max_number = max_number

    def check(self, path: str, value: object, levels: int) -> None:
        """Raises FieldRefused unless the value, and each value in it, is plain.

        path: of the value, for the error.
        levels: of lists and objects that may be nested here.
        """
        if isinstance(value, str):
            if len(value) > _MAX_ARGUMENT_CHARACTERS:
                self._refuse(path, f"is a text of more than {_MAX_ARGUMENT_CHARACTERS} characters for code")
        elif isinstance(value, int | float):
            if abs(value) > self._max_number:
                self._refuse(path, f"is a number above {self._max_number:.0f} for code in the engine")
        elif value is not None and levels == 0:
            self._refuse(path, f"nests arguments more than {_MAX_ARGUMENT_LEVELS} levels deep")
        elif isinstance(value, list):
            for item in value:
                self.check(path, item, levels - 1)
        elif isinstance(value, dict):
            for name, item in value.items():
                inner = f"{path}.{name}" if _is_shown(name) else path
                if name in self._names:
                    raise _not_allowed(inner, "is an argument that chooses what code in the engine does", name)
                self.check(inner, item, levels - 1)

    def _refuse(self, path: str, reason: str) -> None:
        raise _not_allowed(path, reason, self._field)


def _check_token_ids(members: Members, policy: RequestPolicy) -> None:
    """Raises FieldRefused for token ids that an engine would use without a check.

    Why: PyTorch asserts on the device when an index is out of range, and the process ends.
    SGLang 0.5.23 checks neither prompts nor `stop_token_ids`; vLLM checks both since August 2026.
    Versions are not known here, so `stop_token_ids` are refused for all engines.
    """
    if members.keys() >= UNCHECKED_STOP_FIELDS and "stop_token_ids" not in policy.allowed_fields:
        is_used = bytes(members["stop_token_ids"]) not in _NO_STOP_TOKENS
        if is_used and bytes(members["min_tokens"]) not in _NO_MINIMUM:
            raise _not_allowed("stop_token_ids", "with min_tokens, engines use these ids without a check")
    if policy.engines & _ENGINES_WITH_UNCHECKED_PROMPTS and "input_ids" not in policy.allowed_fields:
        for name in TOKEN_PROMPT_FIELDS:
            if name in members and has_token_ids(members[name]):
                raise _not_allowed(name, REFUSED_FIELDS["input_ids"], "input_ids")


def _not_allowed(name: str | None, reason: str, setting_name: str | None = None) -> FieldRefused:
    shown = "a field" if name is None else name
    setting = "engine.allowedFields" if name is None else f"engine.allowedFields: [{setting_name or name}]"
    return FieldRefused(
        f"{shown}: {reason}, and clients may not set it",
        param=name,
        hint=f"leave it out, or the operator of the model allows it with {setting}",
    )


def _without(names: frozenset[str] | set[str], key: str, value: bytes) -> bytes | None:
    if key == _OVERLAY_FIELD and value[:1] == b"{":
        return rewrite_members(value, partial(_member_without, names))
    return _member_without(names, key, value)


def _member_without(names: frozenset[str] | set[str], key: str, value: bytes) -> bytes | None:
    return None if key in names else value
