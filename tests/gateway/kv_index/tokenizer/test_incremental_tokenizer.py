"""A known prefix joined with a tokenized rest has the tokens of the whole text."""

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from fairlead_gateway.kv_index.tokenizer.process import (
    AUDIT_INTERVAL,
    BACKTRACK_CHARACTERS,
    BLOCK_CHARACTERS,
    IncrementalTokenizer,
)

WORDS = [
    *(
        "the",
        "of",
        "index",
        "a",
        "engine",
        "holds",
        "blocks",
        "prompt",
        "tokens",
        "where",
        "routing",
        "cache",
        "12345",
        "7",
    ),
    *("Größe", "naïve", "模型", "缓存", "🙂", "e\u0301", "don't", "<s>", "->", "((", "  ", "\n\n", "\t", "..."),
]


def prose(draw: random.Random, words: int) -> str:
    return "".join(draw.choice(WORDS) + draw.choice([" ", " ", " ", "", ", ", ".\n"]) for _ in range(words))


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([prose(random.Random(0), 4_000)], trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([prose(random.Random(0), 4_000)], trainer)
    return tokenizer


def merged_across_words() -> Tokenizer:
    """Returns a tokenizer that merges across words and puts a space before the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n\n", "isolated")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([prose(random.Random(0), 1_000)], trainer)
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Callable[[str], tuple[Sequence[int], Sequence[int]]]:
    def encode(text: str) -> tuple[Sequence[int], Sequence[int]]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    return encode


@pytest.mark.parametrize("make", [byte_level, unigram, merged_across_words])
def test_conversations_have_the_tokens_of_their_whole_texts(make: Callable[[], Tokenizer]) -> None:
    encode = encoder(make())
    texts = IncrementalTokenizer(encode, max_tokens=100_000)
    draw = random.Random(7)
    for _ in range(12):
        text = ""
        for _ in range(8):
            text += prose(draw, draw.randrange(20, 600))
            assert list(texts.tokenize(text)) == encode(text)[0]
    assert texts.joined_count > 3 * texts.whole_count
    assert texts.mismatch_count == 0


def test_only_the_end_of_a_known_text_is_tokenized() -> None:
    asked: list[int] = []
    encode = encoder(byte_level())

    def counted(text: str) -> tuple[Sequence[int], Sequence[int]]:
        asked.append(len(text))
        return encode(text)

    texts = IncrementalTokenizer(counted, max_tokens=1_000_000)
    first = prose(random.Random(1), 8_000)
    for more in ("", " and one", " and another one"):
        texts.tokenize(first + more)
    assert asked[0] == len(first)
    assert asked[-1] < BLOCK_CHARACTERS + BACKTRACK_CHARACTERS + 100


def test_a_tokenizer_that_is_another_one_in_the_middle_of_a_text_is_found_out() -> None:
    """Its first token depends on the length of the text, further back than a join compares."""

    def encode(text: str) -> tuple[Sequence[int], Sequence[int]]:
        tokens = [ord(char) for char in text]
        if tokens:
            tokens[0] += len(text) // 4_096
        return tokens, list(range(1, len(text) + 1))

    texts = IncrementalTokenizer(encode, max_tokens=1_000_000)
    text = "x" * 4_000
    texts.tokenize(text)
    for number in range(AUDIT_INTERVAL + 2):
        text += "y" * 100
        tokens = list(texts.tokenize(text))
        if texts.mismatch_count:
            break
        assert number < AUDIT_INTERVAL + 1
    assert tokens == encode(text)[0]
    whole = texts.whole_count
    assert list(texts.tokenize(text + "z")) == encode(text + "z")[0]
    assert texts.whole_count == whole + 1, "and every text is tokenized whole from then on"


def test_what_is_kept_stays_below_its_bound_and_the_oldest_goes() -> None:
    encode = encoder(byte_level())
    texts = IncrementalTokenizer(encode, max_tokens=4_000)
    drawn = [prose(random.Random(number), 700) for number in range(12)]
    for text in drawn:
        texts.tokenize(text)
        assert texts.kept_tokens <= 4_000
    joined = texts.joined_count
    texts.tokenize(drawn[-1] + " more")
    assert texts.joined_count == joined + 1
    texts.tokenize(drawn[0] + " more")
    assert texts.joined_count == joined + 1
