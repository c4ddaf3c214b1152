"""A plugin that vLLM loads in each of its processes: where there is no accelerator, its number is 0
(``engine_processes.py`` says why)."""

import torch


def answer() -> None:
    if not torch.accelerator.is_available():
        torch.accelerator.current_device_index = lambda: 0
