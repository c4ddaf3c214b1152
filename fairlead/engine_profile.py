"""Engine profiles: the cost of one engine step as a formula shared by all components.

An engine works in steps. In each step, every running sequence decodes one token. The rest of the
token budget computes chunks of waiting prompts. One step takes

    step = d + max(w, p·tokens computed) + s·sequences + c·resident KV tokens
             + q·n·(context + n/2) + h·hit tokens

- `d`: fixed overhead.
- `w`: the minimum for reading the weights once.
- `p`: one computed token (prompt or decode).
- `s`: one sequence in the batch.
- `c`: one resident KV token that decoding reads.
- `q`: attention of a chunk of n tokens to its context.
- `h`: one token found in the cache, paid once when the request is admitted.

KV of a prompt may lie in slower memory: the engine's CPU memory or disk, or a store that all
engines reach. It is loaded before the prompt's first step, while other sequences go on. A load
takes seconds per token by where it comes from.

All values are in seconds. Most built-in profiles are rooflines, not measurements.
"""

from dataclasses import dataclass, replace

from fairlead.errors import BadInput


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Step cost coefficients in seconds, and capacities in tokens and sequences."""

    name: str
    prefill_token_seconds: float  # p
    attention_seconds: float = 0.0  # q, per token pair
    weights_seconds: float = 0.0  # w
    step_seconds: float = 0.0  # d
    sequence_seconds: float = 0.0  # s
    resident_token_seconds: float = 0.0  # c
    hit_token_seconds: float = 0.0  # h
    kv_tokens: int = 430_000
    max_sequences: int = 256
    step_tokens: int = 8_192
    cpu_token_seconds: float = 0.0
    disk_token_seconds: float = 0.0
    store_token_seconds: float = 0.0

    def step_time(self, *, computed: int, sequences: int, resident: int, attention: float = 0.0, hit: int = 0) -> float:
        """Returns the seconds of one step.

        computed, resident, hit: tokens.
        attention: sum of n·(context + n/2) over the prompt chunks of the step.
        """
        return (
            self.step_seconds
            + max(self.weights_seconds, self.prefill_token_seconds * computed)
            + self.sequence_seconds * sequences
            + self.resident_token_seconds * resident
            + self.attention_seconds * attention
            + self.hit_token_seconds * hit
        )

    def prefill_time(self, prompt: float, hit: float = 0.0) -> float:
        """Returns the engine seconds to prefill one prompt alone, including overheads.

        prompt: tokens of the prompt, of which `hit` are cached.
        """
        new = max(1.0, prompt - hit)
        chunks = max(1.0, -(-new // self.step_tokens))
        return (
            chunks * self.step_seconds
            + max(chunks * self.weights_seconds, self.prefill_token_seconds * new)
            + self.attention_seconds * new * (hit + new / 2)
            + self.hit_token_seconds * hit
        )

    def load_time(self, cpu: float, disk: float, store: float) -> float:
        """Returns the seconds to load so many tokens from CPU memory, disk and shared store."""
        return cpu * self.cpu_token_seconds + disk * self.disk_token_seconds + store * self.store_token_seconds

    def sped_up(self, speed: float) -> "EngineProfile":
        """Returns the profile of the same engine on a clock that runs `speed` times as fast.

        All times shrink; capacities stay the same. Raises BadInput unless `speed` is positive.
        """
        if speed <= 0:
            raise BadInput(f"speed must be positive, got {speed}", field="speed")
        return replace(
            self,
            prefill_token_seconds=self.prefill_token_seconds / speed,
            attention_seconds=self.attention_seconds / speed,
            weights_seconds=self.weights_seconds / speed,
            step_seconds=self.step_seconds / speed,
            sequence_seconds=self.sequence_seconds / speed,
            resident_token_seconds=self.resident_token_seconds / speed,
            hit_token_seconds=self.hit_token_seconds / speed,
            cpu_token_seconds=self.cpu_token_seconds / speed,
            disk_token_seconds=self.disk_token_seconds / speed,
            store_token_seconds=self.store_token_seconds / speed,
        )


def builtin_profiles() -> dict[str, EngineProfile]:
    """Returns the built-in profiles by name.

    Source: `tiny-cpu` was fitted to a real two-layer model on a CPU engine. `h100-llama8b-fitted`
    was fitted to vLLM 0.26 with random weights of Llama 3.1 8B's sizes on an H100, without
    torch.compile (`bench/results/gpu.json`). `h200-llama8b-fitted` is the same with the memory
    bandwidth of an H200: its reads take 3.35/4.8 of the time. The others are rooflines of data
    sheets (`cli/fairlead_cli/catalog/roofline.py`).
    """
    known = (
        EngineProfile("h100-llama8b-fitted", 2.47e-5, 7.0e-10, 6.5e-4, 5.9e-3, 0.0, 3.8e-8, 0.0, 451_840, 256, 8_192),
        EngineProfile("h200-llama8b-fitted", 2.47e-5, 7.0e-10, 6.5e-4, 4.4e-3, 0.0, 2.6e-8, 0.0, 906_752, 256, 8_192),
        EngineProfile("h100-llama8b", 3.6e-5, 1.2e-9, 5.5e-3, 1.5e-3, 0.0, 4.9e-8, 0.0, 840 * 512, 256, 8_192),
        EngineProfile("h200-llama8b", 3.4e-5, 1.2e-9, 3.9e-3, 1.5e-3, 0.0, 3.2e-8, 0.0, 1_771 * 512, 256, 8_192),
        EngineProfile("b200-llama8b", 1.5e-5, 5.2e-10, 2.5e-3, 1.5e-3, 0.0, 2.0e-8, 0.0, 2_340 * 512, 256, 16_384),
        EngineProfile("mi300x-llama8b", 2.6e-5, 8.9e-10, 3.6e-3, 1.5e-3, 0.0, 2.9e-8, 0.0, 2_530 * 512, 256, 16_384),
        EngineProfile("mi325x-llama8b", 2.6e-5, 8.9e-10, 3.1e-3, 1.5e-3, 0.0, 2.6e-8, 0.0, 3_473 * 512, 256, 16_384),
        EngineProfile("mi355x-llama8b", 1.3e-5, 4.6e-10, 2.4e-3, 1.5e-3, 0.0, 1.9e-8, 0.0, 3_944 * 512, 256, 16_384),
        EngineProfile("tpuv5e-llama3b", 7.2e-5, 3.9e-9, 9.4e-3, 1.5e-3, 0.0, 1.7e-7, 0.0, 77 * 512, 256, 512),
        EngineProfile("tpuv6e-llama8b", 3.6e-5, 1.3e-9, 12e-3, 1.5e-3, 0.0, 9.6e-8, 0.0, 143 * 512, 256, 1_024),
        EngineProfile("gaudi2-llama8b", 7.7e-5, 2.7e-9, 7.7e-3, 1.5e-3, 0.0, 6.3e-8, 0.0, 1_020 * 512, 256, 8_192),
        EngineProfile("gaudi3-llama8b", 1.8e-5, 6.3e-10, 5.1e-3, 1.5e-3, 0.0, 4.2e-8, 0.0, 1_459 * 512, 256, 8_192),
        EngineProfile("a100-qwen7b", 8.9e-5, 2.9e-9, 9e-3, 2e-3, 0.0, 3.6e-8, 0.0, 1_750 * 512, 256, 2_048),
        EngineProfile("910b4", 1.45e-4, 4e-9, 22e-3, 3e-3, 0.0, 9e-8, 2.3e-6, 2_340 * 512, 256, 20_480),
        EngineProfile("l4-qwen8b", 3.0e-4, 1.1e-8, 64e-3, 2e-3, 0.0, 5.8e-7, 0.0, 56 * 512, 256, 2_048),
        EngineProfile("tiny-cpu", 8.8e-6, 1.24e-8, 0.0, 1.65e-3, 9.5e-5, 0.0, 0.0, 131_072, 32, 2_048),
    )
    return {profile.name: profile for profile in known}


def builtin_profile(name: str, *, field: str = "profile") -> EngineProfile:
    """Returns a built-in profile. Raises BadInput if there is none of that name."""
    known = builtin_profiles()
    if name not in known:
        raise BadInput(f"no engine profile is called {name!r}", field=field, hint=f"known: {', '.join(sorted(known))}")
    return known[name]
