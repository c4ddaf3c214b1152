"""A language model that says what a script says, made from nothing: run by the engine's own
interpreter.

Each token alone decides the next one, with probabilities that the script states. So it can say what
a model with random weights never says: reasoning, calls of tools, characters that are split over
tokens. The last token of a prompt is a mark, and selects the script. Attention adds nothing.

Usage: ``scripted_model.py TINY FOLDER``, where TINY is the folder of ``tiny_model.py``.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

Choices = list[tuple[bytes, float]]
END = b"<|stop|>"
ADDED = [b"<think>", b"</think>", b"<tool_call>", b"</tool_call>"]
"""Tokens of their own that are shown, as in Qwen3."""
SCRIPTS: dict[bytes, list[bytes | Choices]] = {
    b"<|reason|>": [
        *(b"<think>", b"\nLet", b" me"),
        [(b" see", 0.5), (b" think", 0.3), (b" check", 0.2)],
        [(b" this", 0.6), (b" that", 0.4)],
        *(b".\n", b"</think>", b"\n\n", b"The", b" answer", b" is"),
        [(b" one", 0.5), (b" two", 0.3), (b" three", 0.2)],
        b" indeed.",
    ],
    b"<|call|>": [
        *(b"I will", b" look"),
        [(b" now.", 0.6), (b" there.", 0.4)],
        *(b"<tool_call>", b'\n{"name": "', b"look", b'", "arguments": {"city": "'),
        [(b"Oslo", 0.5), (b"Lima", 0.3), (b"Kyiv", 0.2)],
        b'", "days": ',
        [(b"12", 0.7), (b"30", 0.3)],
        *(b"}}\n", b"</tool_call>"),
    ],
    b"<|split|>": [
        *(b"So I call.", b"<", b"tool_", b"call>", b'{"name": "look"', b', "arguments": {"days": '),
        [(b"7", 0.6), (b"8", 0.4)],
        *(b"} ", b"}", b"</tool", b"_call>"),
    ],
    b"<|bytes|>": [
        *(b"\xe6", b"\x97", b"\xa5", b"x", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"\x98", b"\x80", b"y"),
        *(b"\xe8", b"\xaa\x9ez\xc3", b"\xa9!", b"\xff", b"w", b"\xe7\x8c", b"\xab"),
    ],
}
_WIDTH = 256
_NEVER = -60.0
TEMPLATE = "{{ messages[-1].content }}"


def pieces() -> list[bytes]:
    """All tokens of the scripts, marks first."""
    found = [*SCRIPTS, *ADDED]
    for script in SCRIPTS.values():
        found += [piece for part in script for piece in ([part] if isinstance(part, bytes) else dict(part))]
    return list(dict.fromkeys(found))


def followers() -> dict[bytes, Choices]:
    """Returns the tokens that can follow each token."""
    found: dict[bytes, Choices] = {}
    for mark, script in SCRIPTS.items():
        before = [mark]
        for part in [*script, END]:
            choices = [(part, 1.0)] if isinstance(part, bytes) else part
            for piece in before:
                if piece in found:
                    raise ValueError(f"{piece!r} is in two places")
                found[piece] = choices
            before = [piece for piece, _ in choices]
    return found


def visible(piece: bytes) -> str:
    """The bytes as a vocabulary of bytes writes them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return "".join(table[byte] for byte in piece)


def vocabulary(tokenizer: dict[str, object]) -> dict[bytes, int]:
    """Puts the tokens in the place of the last ones that were learnt; returns their ids."""
    learnt = tokenizer["model"]
    assert isinstance(learnt, dict)
    known: dict[str, int] = learnt["vocab"]
    alone = {*SCRIPTS, *ADDED}
    names = {piece: piece.decode() if piece in alone else visible(piece) for piece in [*pieces(), END]}
    missing = [name for name in names.values() if name not in known]
    dropped = sorted(known, key=lambda name: known[name])[-len(missing) - len(names) :]
    dropped = [name for name in dropped if name not in names.values()][-len(missing) :]
    for old, new in zip(dropped, missing, strict=True):
        known[new] = known.pop(old)
    gone = set(dropped)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in learnt["merges"]]
    learnt["merges"] = [pair for pair in pairs if not gone & {*pair, "".join(pair)}]
    added = tokenizer["added_tokens"]
    assert isinstance(added, list)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for piece in alone:
        entry = {"id": known[piece.decode()], "content": piece.decode(), **flags}
        added.append({**entry, "special": piece in SCRIPTS})
    return {piece: known[name] for piece, name in names.items()}


def model(ids: dict[bytes, int], size: int) -> LlamaForCausalLM:
    """Each token of the scripts has a direction of its own; all others end the answer."""
    shape = LlamaConfig(
        vocab_size=size,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8_192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=ids[END],
        tie_word_embeddings=False,
    )
    made = LlamaForCausalLM(shape).to(torch.float32)
    places = {piece: place for place, piece in enumerate(pieces(), 1)}
    directions = torch.zeros(size, _WIDTH)
    directions[:, 0] = 1.0
    scale = math.sqrt(_WIDTH)  # of a direction behind the last norm
    scores = torch.full((size, _WIDTH), _NEVER / scale)
    scores[ids[END], 0] = 0.0
    for piece, place in places.items():
        directions[ids[piece]] = torch.zeros(_WIDTH)
        directions[ids[piece], place] = 1.0
        for follower, share in followers().get(piece, [(END, 1.0)]):
            scores[ids[follower], place] = math.log(share) / scale
    with torch.no_grad():
        made.model.embed_tokens.weight.copy_(directions)
        made.lm_head.weight.copy_(scores)
        made.model.layers[0].self_attn.o_proj.weight.zero_()
        made.model.layers[0].mlp.down_proj.weight.zero_()
    return made


def main(tiny: str, folder: str) -> None:
    """Writes model and tokenizer."""
    shutil.copytree(tiny, folder)
    file = Path(folder) / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    ids = vocabulary(tokenizer)
    file.write_text(json.dumps(tokenizer))
    (Path(folder) / "chat_template.jinja").write_text(TEMPLATE)
    model(ids, len(tokenizer["model"]["vocab"])).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
