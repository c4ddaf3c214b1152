"""Arguments of all verbs, one file a verb; each calls the ``command`` module of its subject.

`local`: on this machine. `operations`: of a stack or a cluster. `manifests`: of files. `traffic`:
replays and simulations.
"""
