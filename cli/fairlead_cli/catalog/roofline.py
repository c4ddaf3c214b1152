"""Rooflines: the speed of a model on accelerators, from the figures of data sheets.

A step takes as long as its arithmetic or its reads from memory, whichever is longer. Neither
reaches the figures of a data sheet: `COMPUTE_SHARE` and `BANDWIDTH_SHARE` say how much of them an
engine gets. The built-in profiles of NVIDIA's L4, A100 and H100 were made with the same shares.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.engine_profile import EngineProfile

COMPUTE_SHARE: Final = 0.45
BANDWIDTH_SHARE: Final = 0.85
HOPPER_COMPUTE_SHARE: Final = 0.65
"""Source: prompts of 1,024 to 30,000 tokens on vLLM 0.26 and an H100 (`bench/results/gpu.json`)."""
STEP_SECONDS: Final = 1.5e-3
"""The fixed overhead of a step, as in the built-in profile of an H100."""
GIB: Final = 2**30
_MIB: Final = 2**20
_TERA: Final = 1e12


@dataclass(frozen=True, slots=True)
class AcceleratorFigures:
    """The figures of one device in its vendor's data sheet.

    memory_bytes: memory that the device's driver reports, which is less than the data sheet says.
        Where that is not known, the data sheet's gigabytes of 10^9 bytes.
    bytes_per_second: bandwidth of that memory.
    flops: dense operations per second by data type, such as `bf16` and `fp8`.
    devices_per_node: devices in one server or host machine of the vendor's reference design.
    node_label: a label that nodes with this device have, as `name: value`; "" if it differs.
    source: the document with these figures.
    compute_share: of `flops`, what an engine gets.
    """

    memory_bytes: int
    bytes_per_second: float
    flops: dict[str, float]
    devices_per_node: int
    node_label: str
    source: str
    compute_share: float = COMPUTE_SHARE

    def flops_of(self, data_type: str) -> float:
        """Returns the operations per second in a data type; in bf16 where the device lacks it."""
        return self.flops.get(data_type, self.flops["bf16"])


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The work and the reads of a model on one instance.

    weight_bytes: of all weights.
    active_parameters: parameters that one token is multiplied with.
    attention_flops: operations for one token's attention to one earlier token.
    kv_bytes: of one token, on all devices together.
    data_type: of the arithmetic, such as `bf16`.
    """

    weight_bytes: float
    active_parameters: float
    attention_flops: float
    kv_bytes: float
    data_type: str = "bf16"


def roofline_profile(
    name: str, model: ModelCost, accelerator: AcceleratorFigures, *, devices: int, kv_tokens: int
) -> EngineProfile:
    """Returns the profile of one instance of a model, split over devices.

    Communication between the devices is not counted.

    kv_tokens: tokens that the KV cache of the instance holds.
    """
    flops = accelerator.flops_of(model.data_type) * accelerator.compute_share * devices
    bandwidth = accelerator.bytes_per_second * BANDWIDTH_SHARE * devices
    return EngineProfile(
        name,
        prefill_token_seconds=2 * model.active_parameters / flops,
        attention_seconds=model.attention_flops / flops,
        weights_seconds=model.weight_bytes / bandwidth,
        step_seconds=STEP_SECONDS,
        resident_token_seconds=model.kv_bytes / bandwidth,
        kv_tokens=kv_tokens,
    )


def accelerator_figures() -> dict[str, AcceleratorFigures]:
    """Returns the figures by name of the built-in AcceleratorClass."""
    return {
        "nvidia-l4": AcceleratorFigures(
            23_034 * _MIB,
            300e9,
            {"bf16": 121 * _TERA, "fp8": 242 * _TERA},
            8,
            "nvidia.com/gpu.product: NVIDIA-L4",
            "NVIDIA L4 Tensor Core GPU data sheet",
        ),
        "nvidia-a100": AcceleratorFigures(
            81_920 * _MIB,
            2.039e12,
            {"bf16": 312 * _TERA},
            8,
            "nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB",
            "NVIDIA A100 Tensor Core GPU data sheet (SXM, 80 GB)",
        ),
        "nvidia-h100": AcceleratorFigures(
            81_559 * _MIB,
            3.35e12,
            {"bf16": 989 * _TERA, "fp8": 1978 * _TERA},
            8,
            "nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3",
            "NVIDIA H100 Tensor Core GPU data sheet (SXM)",
            HOPPER_COMPUTE_SHARE,
        ),
        "nvidia-h200": AcceleratorFigures(
            143_771 * _MIB,
            4.8e12,
            {"bf16": 989 * _TERA, "fp8": 1978 * _TERA},
            8,
            "nvidia.com/gpu.product: NVIDIA-H200",
            "NVIDIA H200 Tensor Core GPU data sheet (SXM)",
            HOPPER_COMPUTE_SHARE,
        ),
        "nvidia-b200": AcceleratorFigures(
            183_359 * _MIB,
            7.7e12,
            {"bf16": 2250 * _TERA, "fp8": 4500 * _TERA, "fp4": 9000 * _TERA},
            8,
            "nvidia.com/gpu.product: NVIDIA-B200",
            "NVIDIA Blackwell data sheet (HGX B200, an eighth of it)",
        ),
        **_amd_figures(),
        **_google_figures(),
        **_intel_figures(),
    }


def _amd_figures() -> dict[str, AcceleratorFigures]:
    cdna3 = {"bf16": 1307.4 * _TERA, "fp8": 2614.9 * _TERA}
    # 256 compute units of 8,192 operations in FP8 a clock, 2.4 GHz; BF16 has half of them.
    cdna4 = {"bf16": 2516.6 * _TERA, "fp8": 5033.2 * _TERA}
    memory = "memory: AMD GPU specifications of ROCm"
    return {
        "amd-mi300x": AcceleratorFigures(
            192 * GIB, 5.3e12, cdna3, 8, "amd.com/gpu.family: MI300X", f"AMD Instinct MI300X data sheet; {memory}"
        ),
        "amd-mi325x": AcceleratorFigures(256 * GIB, 6e12, cdna3, 8, "", f"AMD Instinct MI325X data sheet; {memory}"),
        "amd-mi355x": AcceleratorFigures(288 * GIB, 8e12, cdna4, 8, "", f"AMD Instinct MI355X at ISSCC 2026; {memory}"),
    }


def _google_figures() -> dict[str, AcceleratorFigures]:
    label, source = "cloud.google.com/gke-tpu-accelerator", "Google Cloud TPU documentation, page TPU v6e"
    return {
        "google-tpu-v5e": AcceleratorFigures(
            int(16e9), 0.8e12, {"bf16": 197 * _TERA}, 8, f"{label}: tpu-v5-lite-podslice", source
        ),
        "google-tpu-v6e": AcceleratorFigures(
            int(32e9), 1.6e12, {"bf16": 918 * _TERA}, 8, f"{label}: tpu-v6e-slice", source
        ),
    }


def _intel_figures() -> dict[str, AcceleratorFigures]:
    source = "Intel Gaudi 3 AI Accelerator, Hot Chips 2024"
    return {
        "intel-gaudi2": AcceleratorFigures(int(96e9), 2.46e12, {"bf16": 432 * _TERA}, 8, "", source),
        "intel-gaudi3": AcceleratorFigures(
            int(128e9), 3.67e12, {"bf16": 1835 * _TERA, "fp8": 1835 * _TERA}, 8, "", source
        ),
    }
