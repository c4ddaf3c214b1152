"""Engine adapters: one module per kind of engine.

- `adapter_protocol`: the adapter protocol; `vllm`, `sglang`, `llama_cpp`,
  `tensorrt_llm` and `sim` implement it.
- `registry`: the adapter of each kind.
- `prometheus_scan`: fast reading of engine metrics.
- `credentials`: CA files and bearer tokens for connecting to engines.
- `sleep_mode`: vLLM's sleep mode, and when to use it.
- `containers/`: how engines run in pods.

A new engine is one module, with recorded metrics as tests.
"""
