"""Engines in pods whose command lines no conversion reads, and what to do with each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fairlead_cli.migration.field_reader import FieldReader

_BY_ADDRESS: Final = "keep it, and write a ModelDeployment with `engine.type: External` that leads to it"


@dataclass(frozen=True, slots=True)
class OtherEngine:
    """An engine other than vLLM and SGLang.

    images: a pattern of the last parts of its images' names. programs: names of its programs.
    type: the `engine.type` with which Fairlead runs it; empty if Fairlead does not run it.
    """

    name: str
    images: str
    programs: tuple[str, ...]
    type: str = ""

    @property
    def problem(self) -> str:
        """Says why it is not converted."""
        return f"convert reads no command line of {self.name}" if self.type else f"Fairlead does not run {self.name}"

    @property
    def hint(self) -> str:
        """Says what to do instead."""
        return f"write a ModelDeployment with `engine.type: {self.type}`" if self.type else _BY_ADDRESS

    def runs_in(self, container: FieldReader) -> bool:
        """Whether the image or a word of the command line is one of the engine's."""
        words = [str(word) for name in ("command", "args") for word in container.peek(name) or ()]
        if any(word.rsplit("/", 1)[-1] in self.programs for text in words for word in text.split()):
            return True
        return re.search(f"(?:^|/)(?:{self.images})(?:[:@]|$)", str(container.peek("image") or "")) is not None


_OTHERS: Final = (
    OtherEngine("Ollama", "ollama", ("ollama",)),
    OtherEngine("TGI", "text-generation-inference", ("text-generation-launcher",)),
    OtherEngine("LocalAI", "local-?ai", ("local-ai",)),
    OtherEngine("LMDeploy", "lmdeploy", ("lmdeploy",)),
    OtherEngine("Triton", "tritonserver", ("tritonserver",)),
    OtherEngine("llama.cpp", r"llama\.cpp", ("llama-server",), "LlamaCpp"),
    OtherEngine("TensorRT-LLM", r"tensorrt-llm(?:/release)?", ("trtllm-serve",), "TRTLLM"),
)


def other_engine(containers: Iterable[FieldReader]) -> OtherEngine | None:
    """Returns the first other engine that a container runs; None without one."""
    for container in containers:
        for engine in _OTHERS:
            if engine.runs_in(container):
                return engine
    return None
