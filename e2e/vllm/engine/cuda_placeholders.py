"""Placeholders for the CUDA libraries that the common build of torch is linked with.

The build of torch for processors alone is in no common registry. The common build loads 17
libraries of CUDA when it starts, 3.5 GB of them, also on a machine without an accelerator.
A placeholder has the name and the symbols of such a library. Each of its functions returns the
error "no CUDA-capable device", so torch finds no accelerator.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

_LIBRARY = re.compile(r"lib(cu|nv|nccl)[A-Za-z0-9_]*\.so\.\d+")
_SYMBOL = re.compile(r"(__cuda|_*cu|nccl|nv)\w+(@[\w.]+)?")
_COMMON = "libcudart.so.13"
"""The library that gets the symbols without a version: the linker looks for them in all."""
_NO_DEVICE = 100
_SUCCESSES = ("cudaGetLastError", "cudaPeekAtLastError")
"""Functions that return 0: they name the last error, and there was none."""


def write_placeholders(folder: Path) -> int:
    """Compiles the placeholders into the folder of torch's own libraries, and returns how many."""
    users = sorted(folder.glob("lib*.so"))
    names = {name for user in users for name in _needed(user) if _LIBRARY.fullmatch(name)}
    symbols = _symbols(users)
    for name in sorted(names):
        versions = symbols.get(name, {})
        if name == _COMMON:
            versions = {**versions, _COMMON: versions.get(_COMMON, set()) | symbols[""][""]}
        _compile(folder / name, versions)
    return len(names)


def _needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", _read("readelf", "-dW", str(library)))


def _symbols(users: list[Path]) -> dict[str, dict[str, set[str]]]:
    """Returns library → version → undefined symbols.

    Library and version are empty for symbols without a version.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for user in users:
        libraries = _library_of_version(user)
        for line in _read("nm", "-D", "--undefined-only", str(user)).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            if _SYMBOL.fullmatch(symbol) and (not version or version in libraries):
                found[libraries.get(version, "")][version].add(symbol)
    return found


def _library_of_version(user: Path) -> Mapping[str, str]:
    """Returns the versions of symbols of CUDA that a library needs, each with the library that
    defines it."""
    found, library = {}, ""
    for line in _read("readelf", "-VW", str(user)).splitlines():
        if file := re.search(r"File: (\S+)", line):
            library = file[1]
        elif (name := re.search(r"Name: (\S+)\s+Flags", line)) and _LIBRARY.fullmatch(library):
            found[name[1]] = library
    return found


def _compile(target: Path, versions: Mapping[str, set[str]]) -> None:
    code = "".join(
        f"long {symbol}(void) {{ return {0 if symbol in _SUCCESSES else _NO_DEVICE}; }}\n"
        for names in versions.values()
        for symbol in sorted(names)
    )
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
        for version, names in versions.items()
    )
    with tempfile.TemporaryDirectory() as work:
        source, map_file = Path(work) / "library.c", Path(work) / "library.map"
        source.write_text(code or "typedef int nothing;\n")
        map_file.write_text(script)
        map_option = [f"-Wl,--version-script={map_file}"] if script else []
        command = ["gcc", "-shared", "-fPIC", "-fno-builtin", "-w", f"-Wl,-soname,{target.name}", *map_option]
        subprocess.run([*command, "-o", str(target), str(source)], check=True)


def _read(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
