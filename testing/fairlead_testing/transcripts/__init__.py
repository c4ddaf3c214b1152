"""Recordings of a real vLLM, replayed against the simulated engine and compared.

``python -m fairlead_testing.transcripts`` records them again.

- ``recording``: the files, and the claims of ``manifest.yaml``
- ``replay``: sends the requests to an engine, with a client that keeps every byte
- ``comparison``: compares the responses
"""
