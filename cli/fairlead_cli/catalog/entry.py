"""An entry of the catalogue: a model, the figures of its config.json, and its parsers."""

from importlib.resources import files
from typing import Any, Final

import msgspec
import yaml

from fairlead.errors import BadInput
from fairlead.manifests.yaml_nodes import SAFE_LOADER
from fairlead.names import closest_matches

ENGINES: Final = {"vllm": "VLLM", "sglang": "SGLang"}
"""Name on the command line → `engine.type`."""
IMAGES: Final = {"vllm": "vllm/vllm-openai:v0.32.0", "sglang": "lmsysorg/sglang:v0.5.23"}
"""The images whose parsers the entries name, for NVIDIA's GPUs."""


class QuantizedWeights(msgspec.Struct, frozen=True):
    """`weights` of a group of compressed-tensors."""

    type: str
    num_bits: int
    group_size: int | None = None


class QuantizationGroup(msgspec.Struct, frozen=True):
    """A group of `config_groups`, which compressed-tensors writes."""

    weights: QuantizedWeights


class Quantization(msgspec.Struct, frozen=True):
    """`quantization_config` of a config.json.

    ignore: patterns of the parts that stay in the model's own type.
    """

    quant_method: str
    weight_block_size: list[int] = []
    config_groups: dict[str, QuantizationGroup] = {}
    ignore: list[str] = []

    @property
    def data_type(self) -> str:
        """The type of the quantized weights.

        It is `quant_method`, except `int4` where compressed-tensors quantized routed experts alone.
        """
        weights = [group.weights for group in self.config_groups.values()]
        ignores_rest = all(any(part in name for name in self.ignore) for part in ("self_attn", "shared_experts"))
        if self.quant_method == "compressed-tensors" and weights == [_INT4_WEIGHTS] and ignores_rest:
            return "int4"
        return self.quant_method


_INT4_WEIGHTS: Final = QuantizedWeights("int", 4, 32)


class VisionConfig(msgspec.Struct, frozen=True):
    """`vision_config` of a config.json: the part of the model that reads images."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of a config.json that decide about memory, under their own names.

    full_attention_layers: layers with ordinary attention: no window, not linear. None for all.
    indexer_layers: layers with an indexer of their own; None for all where `index_n_heads` is set.
    """

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    torch_dtype: str = "bfloat16"
    head_dim: int | None = None
    intermediate_size_mlp: int | None = None
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    indexer_layers: int | None = None
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_conv_kernel_dim: int = 4
    num_experts: int = 0
    num_local_experts: int = 0
    n_routed_experts: int = 0
    num_experts_per_tok: int = 0
    top_k_experts: int = 0
    moe_intermediate_size: int | None = None
    n_shared_experts: int = 0
    shared_expert_intermediate_size: int = 0
    enable_moe_block: bool = False
    first_k_dense_replace: int = 0
    interleave_moe_layer_step: int = 1
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    full_attention_layers: int | None = None
    quantization_config: Quantization | None = None
    vision_config: VisionConfig | None = None


class Parsers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parsers of one engine for a model; None where it has none for it.

    tokenizer_mode: of vLLM, for models without a chat template.
    """

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    tokenizer_mode: str | None = None


class CatalogEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model of the catalogue.

    repository: on Hugging Face.
    config_sources, parser_sources: `FILE in REPOSITORY at REVISION`.
    trust_remote_code: its repository has Python code that engines must run.
    gated: Hugging Face gives its files to accounts that have accepted its licence.
    """

    name: str
    repository: str
    config: ModelConfig
    config_sources: list[str]
    vllm: Parsers = Parsers()
    sglang: Parsers = Parsers()
    parser_sources: list[str] = []
    trust_remote_code: bool = False
    gated: bool = False

    def parsers(self, engine: str) -> Parsers:
        return self.vllm if engine == "vllm" else self.sglang


class ModelFamily(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models with facts in common, as a file of the catalogue has them.

    shared: fields of each of its entries, which have the rest themselves.
    """

    models: list[dict[str, Any]]
    shared: dict[str, Any] = {}

    def entries(self) -> list[CatalogEntry]:
        return msgspec.convert([self._complete(model) for model in self.models], list[CatalogEntry])

    def _complete(self, model: dict[str, Any]) -> dict[str, Any]:
        """Returns all fields of an entry: its own, then those of its family."""
        complete = self.shared | model
        for field in self.shared.keys() & model.keys():
            own, shared = model[field], self.shared[field]
            complete[field] = [*own, *shared] if isinstance(own, list) else {**shared, **own}
        return complete


def read_entries() -> dict[str, CatalogEntry]:
    """Returns all entries by name, in the order of their families' files."""
    folder = files("fairlead_cli.catalog") / "models"
    entries: list[CatalogEntry] = []
    for path in sorted(folder.iterdir(), key=lambda found: found.name):
        if path.name.endswith(".yaml"):
            content: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=SAFE_LOADER)
            for family in msgspec.convert(content, list[ModelFamily]):
                entries += family.entries()
    return {entry.name: entry for entry in entries}


def find_entry(name: str) -> CatalogEntry:
    """Returns an entry by its name or repository. Raises BadInput with similar names."""
    entries = read_entries()
    wanted = name.lower()
    for entry in entries.values():
        if wanted in (entry.name, entry.repository.lower()):
            return entry
    similar = closest_matches(wanted, list(entries), count=3)
    hint = f"did you mean {', '.join(similar)}?" if similar else "fairlead catalog list shows all"
    raise BadInput(f"the catalogue has no model {name!r}", field="MODEL", hint=hint)
