"""A gateway that tokenizes text itself: predictions are right, and a wrong file gives none."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from fairlead_sim.engine.tokenizer import CONTROL_TOKENS
from fairlead_sim.engine.tokenizer import Tokenizer as Simulated
from fairlead_testing.gateway.index_stage import MODEL_KEY, IndexStage, index_stage
from fairlead_testing.waiting import wait_until

SIMULATED = Simulated()


def simulated_file(folder: Path, *, shifted: int = 0) -> None:
    """Writes the tokenizer of simulated engines to a file.

    shifted: offset of its token numbers, to make it wrong.
    """
    count, first = SIMULATED.vocab_size, len(CONTROL_TOKENS)
    pieces = {
        SIMULATED.printable_piece(token): first + (token - first + shifted) % (count - first)
        for token in range(first, count)
    }
    pieces |= {piece: number for number, piece in enumerate(CONTROL_TOKENS)}
    tokenizer = Tokenizer(models.BPE(pieces, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[a-z]{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    path = folder / MODEL_KEY / "tokenizer.json"
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


def test_the_file_is_the_simulated_engines_tokenizer(tmp_path: Path) -> None:
    simulated_file(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / MODEL_KEY / "tokenizer.json"))
    for text in ("abc def", "Größe 模型 12  a", SIMULATED.random_text(500, "x"), "It's\n\nTHE end"):
        assert tokenizer.encode(text).ids == SIMULATED.encode(text)


async def links(place: IndexStage) -> dict[str, Any]:
    models = (await place.gateway.get_json("/api/fleet"))["models"]
    status: dict[str, Any] = models[0]["links"]
    return status


async def credited(place: IndexStage, text: str) -> tuple[float, float]:
    """Returns the cached tokens of a prompt: from the index, and as the engine reports them."""
    decision = await place.complete(text)
    inputs = decision["choices"][0]["candidates"][0]["inputs"]
    indexed = inputs["indexed_tokens"]["value"] if "indexed_tokens" in inputs else 0.0
    return float(indexed), float(decision["outcome"]["cached_tokens"])


async def test_prompts_of_text_are_credited_as_the_engine_reports_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_file(tmp_path / "files")
    monkeypatch.setenv("FAIRLEAD_LINKS", "process")
    monkeypatch.setenv("FAIRLEAD_TOKENIZERS", str(tmp_path / "files"))
    async with index_stage(tmp_path) as place:
        text = SIMULATED.random_text(1_000, "first")
        await place.complete(text)
        await place.wait_for_links(6)
        assert (await links(place))["how"].startswith("text prompts are tokenized by the gateway's process")

        async def known() -> bool:
            indexed, cached = await credited(place, text)
            return indexed > 0.9 * cached > 800

        await wait_until(known)


async def test_a_wrong_file_links_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated_file(tmp_path / "files", shifted=1)
    monkeypatch.setenv("FAIRLEAD_LINKS", "process")
    monkeypatch.setenv("FAIRLEAD_TOKENIZERS", str(tmp_path / "files"))
    async with index_stage(tmp_path) as place:
        await place.wait_for_state("incomplete")
        for text in [SIMULATED.random_text(300, f"text {number}") for number in range(12)]:
            await place.complete(text)

        async def given_up() -> bool:
            return "no engine reported the tokens" in (await links(place))["how"]

        await wait_until(given_up)
        assert (await links(place))["blocks"] == 0
        await place.complete(SIMULATED.random_text(300, "another"))
        await place.wait_for_links(2)  # from the engine's tokens
