"""vLLM's own CPU tier on a machine without an accelerator: loaded by the engine's processes, never
by ours.

The connector, what it keeps and evicts, and its events are vLLM's, unchanged; only the worker that
moves blocks is built for accelerators. This one copies them from one part of the memory to another.
"""

import time
from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """Blocks of the cache's tensors, and as many of the tier as it has room for; a copy is done
    when it is asked for."""

    def __init__(self, caches: Any, blocks: int) -> None:
        self._device = [tensor.tensor.view(torch.int8).view(-1, tensor.page_size_bytes) for tensor in caches.tensors]
        self._host = [torch.zeros((blocks, one.shape[1]), dtype=torch.int8) for one in self._device]
        self._done: list[TransferResult] = []

    def _copy(self, job: int, source: list[Any], target: list[Any], source_ids: Any, target_ids: Any) -> bool:
        began = time.monotonic()
        taken, put = (torch.as_tensor(np.asarray(ids).ravel().astype(np.int64)) for ids in (source_ids, target_ids))
        for one, other in zip(source, target, strict=True):
            other[put] = one[taken]
        size = sum(one.shape[1] for one in source) * len(taken)
        seconds = time.monotonic() - began
        self._done.append(TransferResult(job_id=job, success=True, transfer_size=size, transfer_time=seconds))
        return True

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._device, self._host, src_spec.block_ids, dst_spec.block_ids)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        return self._copy(job_id, self._host, self._device, src_spec.block_ids, dst_spec.block_ids)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever on its way."""


class CopyingSpec(CPUOffloadingSpec):
    """The tier as vLLM has it, with that worker."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        """One for the engine's life. One block is a chunk."""
        if not self._worker:
            self._worker = CopyingWorker(kv_caches, self.num_chunks)
        return self._worker
