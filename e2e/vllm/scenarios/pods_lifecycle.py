"""The life of a model with real engines on a cluster.

It is applied, served through the gateway's Service, indexed, rolled out, scaled and deleted.
"""

import json
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from e2e.kube.cluster_access.index_status import IndexStatus
from e2e.kube.cluster_access.kubectl import eventually, run_fairlead
from e2e.kube.workloads.client_pods import HOST, StreamSession
from e2e.vllm.engine.engine_processes import BLOCK_TOKENS
from e2e.vllm.pods import pod_environment
from e2e.vllm.pods.pod_stage import MODEL, START_SECONDS, ModelStage, PodStage, post, step
from e2e.vllm.report import Numbers, VllmReport, require

_RATE, _TOKENS = 0.5, 8
_QUESTIONS = tuple(f"Why is {number} a number? " * 40 for number in (3, 17, 255))


class PodsLifecycle:
    """One model of one or two engines, at most three while they are replaced."""

    def __init__(self, stage: PodStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Runs everything, in order."""
        with self._stage.namespace("lifecycle") as self._here:
            await step(self._report, "applied, and a first token through the gateway's Service", self._apply)
            await step(self._report, "answers are those of the engine alone", self._compare)
            await step(self._report, "blocks of the prompts are in the index", self._index)
            await step(self._report, "rollout of a changed argument, under streams", self._roll_out)
            await step(self._report, "two engines, under streams", self._scale_up)
            await step(self._report, "one engine, under streams", self._scale_down)
            await step(self._report, "deleted", self._delete)

    def _apply(self) -> Numbers:
        here = self._here
        manifest = here.manifest(self._pool(1), engine=pod_environment.engine(self._stage.installed))
        begun = time.time()
        here.here.apply(manifest)
        first = here.client.first_token(here.name, seconds=START_SECONDS)
        (pod,) = here.wait_until_ready(pods=1, seconds=60.0).values()
        return {"first_token_seconds": round(first - begun, 1), "phase": pod["status"]["phase"]}

    def _compare(self) -> Numbers:
        """Asks the gateway's Service and the engine's pod the same, from a pod.

        The engine is asked under a salt, so that no answer starts from a cached prefix.
        """
        here = self._here
        (pod,) = here.model.pods().values()
        asked = ((f"http://{HOST}", {"model": here.name}), (here.address(pod), {"model": MODEL, "cache_salt": "alone"}))
        through, alone = ([_answer(here, url, more, one) for one in _QUESTIONS] for url, more in asked)
        require(all(through), "an answer is empty", {"texts": through})
        require(through == alone, "an answer is another one", {"through": through, "alone": alone})
        return {"answers": len(through), "characters": sum(map(len, through))}

    def _index(self) -> Numbers:
        """Looks up the prompts by ``fairlead index match``, and reads the engine's count."""
        here = self._here
        (pod,) = here.model.pods().values()
        IndexStatus(self._stage.release, here.name).wait_until_followed(1)
        numbers: Numbers = {"prompt_tokens": 0, "matched_tokens": 0, "cached_tokens": 0}
        for question in _QUESTIONS:
            asked = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
            tokens = post(here.client, f"{here.address(pod)}/tokenize", asked)["tokens"]
            whole = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
            eventually("its blocks are in the index", lambda: _matched(here, tokens) >= whole, seconds=60.0, every=1.0)  # noqa: B023
            again = post(here.client, f"http://{HOST}/v1/chat/completions", {**asked, "model": here.name, **_GREEDY})
            cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
            require(cached in (whole, whole - BLOCK_TOKENS), "the engine found another number", {"cached": cached})
            counts = {"prompt_tokens": len(tokens), "matched_tokens": whole, "cached_tokens": cached}
            numbers = {name: numbers[name] + count for name, count in counts.items()}
        return {"prompts": len(_QUESTIONS), **numbers}

    def _roll_out(self) -> Numbers:
        here = self._here
        before = here.model.pods()
        changed = pod_environment.engine(self._stage.installed, "--max-num-seqs=64")
        return self._change({"engine": {"args": changed["args"]}}, pods=1, replaced=before)

    def _scale_up(self) -> Numbers:
        here = self._here
        before = here.model.pods()
        numbers = self._change({"pools": [self._pool(2)]}, pods=2)
        require(before.keys() <= here.model.pods().keys(), "the first engine was replaced", numbers)
        answered: set[str | None] = set()

        def have_answered() -> bool:
            answered.add(here.client.send(here.name, prompt=f"{len(answered)} {time.monotonic()} ").instance)
            return len(answered - {None}) == 2

        eventually("both engines answer", have_answered, describe=lambda: str(answered))
        return numbers

    def _scale_down(self) -> Numbers:
        return self._change({"pools": [self._pool(1)]}, pods=1)

    def _delete(self) -> Numbers:
        self._here.wait_until_gone(seconds=120.0)
        return {"status_of_a_request": self._here.client.send(self._here.name).status}

    def _change(self, spec: Numbers, *, pods: int, replaced: Collection[str] = ()) -> Numbers:
        """Changes the model while streams run, of which none may fail.

        replaced: pods that are gone afterwards.
        """
        here = self._here
        with StreamSession(here.client, here.name, rate=_RATE, tokens=_TOKENS) as streams:
            begun = time.monotonic()
            here.model.patch(spec)
            here.wait_until_ready(pods=pods, seconds=START_SECONDS, replaced=replaced)
            numbers: Numbers = {"settled_seconds": round(time.monotonic() - begun, 1)}
        numbers |= {name: streams.end[name] for name in ("streams", "outcomes", "first_token_seconds")}
        require(not streams.failures, "a stream failed", {**numbers, "failures": streams.failures[:5]})
        return numbers

    @staticmethod
    def _pool(replicas: int) -> Numbers:
        return pod_environment.pool(minReplicas=replicas)


_GREEDY = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}


def _answer(here: ModelStage, url: str, more: Numbers, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], **_GREEDY, **more}
    answer = post(here.client, f"{url}/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"])


def _matched(here: ModelStage, tokens: list[int]) -> int:
    """Returns the tokens of a prompt that an instance has cached, by ``fairlead index match``."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(tokens))
        file.flush()
        words = ("index", "match", "--model", here.name, "--tokens", str(Path(file.name)), "--output", "json")
        found = json.loads(run_fairlead(here.here, *words)[1])
    return max((one["matched_tokens"] for one in found["instances"]), default=0)
