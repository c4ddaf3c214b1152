"""Recordings of a real vLLM, replayed against the simulated engine and compared.

``python -m fairlead_testing.transcripts DIR`` checks the claims of ``manifest.yaml``.

- ``recording``: the claims and the files
- ``replay``: sends the requests to an engine, with a client that keeps every byte; its report
- ``comparison``: compares the responses
"""
