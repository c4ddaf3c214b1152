"""Records what vLLM's own API handlers make of requests and of scripted outputs.

The engine's own interpreter runs it. No engine runs, so that this takes seconds.

Usage: ``handler_recordings.py FOLDER``. The rows of these files get what becomes of their request:

- ``conversations.json``: chat turns and tools
- ``errors.json``: status and refusal
- ``replies.json``: the answer, after an output of the row's ``pieces``
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")

import httpx
from fastapi import FastAPI
from vllm.entrypoints.anthropic import api_router as messages_router
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion import api_router as chat_router
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses import api_router as responses_router
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser
from vllm.renderers.online_renderer import OnlineRenderer

VOCABULARY = {"<think>": 1, "</think>": 2}
PROMPT = list(range(10, 50))


class Thinking(BaseThinkingReasoningParser):
    start_token = "<think>"
    end_token = "</think>"


class Vocabulary:
    vocab = VOCABULARY

    def get_vocab(self):
        return VOCABULARY


class ScriptedEngine:
    """The client of an engine that says the pieces of one row."""

    errored = False
    tokenizer = Vocabulary()
    model_config = SimpleNamespace(
        model="tiny",
        max_model_len=4096,
        hf_config=SimpleNamespace(model_type="llama"),
        get_diff_sampling_param=dict,
        generation_config="vllm",
        override_generation_config={},
        multimodal_config=None,
        is_encoder_decoder=False,
        enable_prompt_embeds=False,
    )
    renderer = SimpleNamespace(tokenizer=tokenizer, get_tokenizer=Vocabulary)
    input_processor = vllm_config = None

    def __init__(self):
        self.pieces, self.finish = [""], "stop"

    def check_admission(self, n=1):
        pass

    async def generate(self, prompt, sampling_params, request_id, **options):
        is_delta = "DELTA" in str(sampling_params.output_kind)
        tokens = tuple(VOCABULARY.get(piece, 9) for piece in self.pieces)
        for at, piece in enumerate(self.pieces):
            last = at == len(self.pieces) - 1
            if is_delta or last:
                text, ids = (piece, tokens[at : at + 1]) if is_delta else ("".join(self.pieces), tokens)
                output = CompletionOutput(0, text, ids, None, None, finish_reason=self.finish if last else None)
                yield RequestOutput(
                    request_id, "", PROMPT, None, [output], last, num_cached_tokens=32, num_cache_creation_tokens=0
                )


class Models:
    def __init__(self):
        self.lora_requests = {}
        self.base_model_paths = [SimpleNamespace(name="tiny", model_path="tiny")]

    def is_base_model(self, name):
        return name == "tiny"

    def model_name(self, adapter=None):
        return "tiny"


class RecordingRenderer(OnlineRenderer):
    """The renderer of chat requests, which records them before any template or tokenizer."""

    def __init__(self, parser):
        self.model_config, self.renderer, self.parser = ScriptedEngine.model_config, ScriptedEngine.renderer, parser
        self.use_harmony = self.exclude_tools_when_tool_choice_none = False
        self.trust_request_chat_template = self.trust_request_mm_kwargs = False
        self.enable_auto_tools = True
        self.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        self.chat_template_content_format, self.default_chat_template_kwargs = "string", {}

    async def preprocess_chat(self, request, messages, *, tool_dicts=None, parser=None, **options):
        self.recorded = {"messages": plain(messages), "tools": tool_dicts}
        parser(Vocabulary(), request.tools, model_config=self.model_config).adjust_request(request=request)
        return [], [{"type": "token", "prompt_token_ids": PROMPT}]


def plain(value):
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value if isinstance(value, str | int | float | None) else [plain(item) for item in value]


def build_app(engine, *, reasons):
    """The API of an engine with Hermes' tool parser, and perhaps one of reasoning."""
    reasoning = "thinking" if reasons else ""
    parser = ParserManager.get_parser(
        tool_parser_name="hermes", reasoning_parser_name=reasoning, enable_auto_tools=True
    )
    renderer = RecordingRenderer(parser)
    options = {
        "request_logger": None,
        "chat_template": None,
        "chat_template_content_format": "string",
        "reasoning_parser": reasoning,
        "enable_auto_tools": True,
        "tool_parser": "hermes",
        "enable_prompt_tokens_details": True,
        "online_renderer": renderer,
    }
    app = FastAPI()
    init_exception_handler(app)
    for router in (messages_router, chat_router, responses_router):
        router.attach_router(app)
    chat = OpenAIServingChat(engine, Models(), "assistant", **options)
    chat.system_fingerprint = "vllm-0.32.0-00000000"
    app.state.args, app.state.openai_serving_chat = SimpleNamespace(log_error_stack=False), chat
    app.state.anthropic_serving_messages = AnthropicServingMessages(engine, Models(), "assistant", **options)
    app.state.openai_serving_responses = OpenAIServingResponses(engine, Models(), **options)
    return app, renderer


def masked(answer):
    """The answer without ids, times and counts."""
    answer = re.sub(r"(chatcmpl-tool-|chatcmpl-|resp_|msg_|rs_|fc_)[0-9a-f]{16}", r"\1ID", answer)
    answer = re.sub(r'"signature":"\w+"', '"signature":"S"', answer)
    return re.sub(r'("(?:\w+_tokens|created|created_at)":)\d+', r"\g<1>0", answer)


async def main(folder):
    ReasoningParserManager.reasoning_parsers["thinking"] = Thinking
    ParserManager.validate_parser_tokenizer = classmethod(lambda *arguments, **options: None)
    engine = ScriptedEngine()
    apps = {reasons: build_app(engine, reasons=reasons) for reasons in (False, True)}
    for name in ("conversations", "errors", "replies"):
        path = Path(folder) / f"{name}.json"
        rows = json.loads(path.read_text())
        for row in rows:
            app, renderer = apps[row.get("reasons", False)]
            engine.pieces, engine.finish = row.get("pieces", ["x"]), row.get("finish", "stop")
            body = {field: value for field, value in row["body"].items() if field != "structured_outputs"}
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://engine"
            ) as client:
                method = row.get("method", "POST")
                answer = await client.request(method, row["path"], json=body if method == "POST" else None)
            if name == "errors":
                row.update(status=answer.status_code, answer=answer.text)
                continue
            answer.raise_for_status()
            row.update(renderer.recorded if name == "conversations" else {"answer": masked(answer.text)})
        path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
