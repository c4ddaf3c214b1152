"""A language model small enough for a laptop's processor, made from nothing: run by the engine's
own interpreter.

Two Llama layers with random weights behind a byte-level tokenizer that is trained on the standard
library, so no file is fetched from anywhere. What it says makes no sense, but greedy answers depend
on every token of the prompt: the weights are drawn wide, so a cache that is wrong anywhere shows in
the first words. Usage: ``tiny_model.py FOLDER``.
"""

import json
import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as FromBytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 8_192
CONTEXT = 8_192
WIDTH = 256
SPREAD = 0.2
MARKS = {"pad": "<|pad|>", "bos": "<|start|>", "eos": "<|stop|>"}
SPEAKERS = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TEMPLATE = (
    "{{ bos_token }}"
    "{%- if tools %}<|system|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{{ eos_token }}{% endif -%}"
    "{%- for message in messages %}<|{{ message.role }}|>\n{{ message.content or '' }}"
    "{% if not (loop.last and continue_final_message) %}{{ eos_token }}\n{% endif %}{% endfor -%}"
    "{%- if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs learnt from the standard library's own source text."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = sorted([*library.glob("[a-m]*.py"), *library.glob("json/*.py"), *library.glob("http/*.py")])
    plain = Tokenizer(BPE())
    plain.pre_tokenizer = ByteLevel(add_prefix_space=False)
    plain.decoder = FromBytes()
    special = [*MARKS.values(), *SPEAKERS]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    plain.train([str(path) for path in texts], trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=MARKS["pad"],
        bos_token=MARKS["bos"],
        eos_token=MARKS["eos"],
        model_max_length=CONTEXT,
    )
    found.add_special_tokens({"additional_special_tokens": SPEAKERS})
    found.chat_template = TEMPLATE
    return found


def model() -> LlamaForCausalLM:
    """Random weights, always the same ones."""
    torch.manual_seed(20)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        initializer_range=SPREAD,
    )
    return LlamaForCausalLM(shape).to(torch.bfloat16)


def main(folder: str) -> None:
    """Write model and tokenizer."""
    tokenizer().save_pretrained(folder)
    model().save_pretrained(folder)
    told = Path(folder) / "tokenizer_config.json"
    settings = json.loads(told.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }  # clients know the old name
    told.write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    main(sys.argv[1])
