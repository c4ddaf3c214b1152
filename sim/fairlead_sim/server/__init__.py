"""The simulated engine as a process that clients cannot tell from vLLM 0.32.

``process`` hosts one or many engines, by the options of ``command_line``. A request passes
``http.connection``, ``api.routes``, a handler of ``api``, ``generation.requests``, the engine of
``runtime`` and ``generation.streaming``.
"""
