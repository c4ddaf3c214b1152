"""The rules by which an instance is chosen, one a file: the default, ``dual_hash``, and published ones to compare it with.

Each is a pure function. ``question`` says what the published ones are asked, ``answer`` how they say what they chose, and ``table``
which name is whose.
"""
