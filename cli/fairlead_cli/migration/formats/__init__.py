"""The formats of other systems, one module for each.

- `kserve`, `kserve_predictor`: `LLMInferenceService`, and `InferenceService` with its canaries.
- `aibrix`, `kubeai`, `kthena`: custom resources.
- `llm_d`, `production_stack`: values of Helm charts.
- `litellm`: `config.yaml` of the proxy.
"""
