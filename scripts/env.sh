#!/bin/sh
# Makes .venv usable: locked dependencies once per lock file outside the tree, then this checkout on top.
# Idempotent; a second call costs a few milliseconds. Needs Python >= 3.11 and a package registry, nothing else.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
cache=${FAIRLEAD_CACHE:-$HOME/.cache/fairlead}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "fairlead needs Python >= 3.11; $python is $("$python" --version). Set PYTHON=/path/to/python3.11." >&2
  exit 1
}
# The interpreter below any active environment: from .venv itself too, a call finds what is installed.
python=$("$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))')
# One environment per lock file and interpreter, shared by every checkout on this machine.
stamp=$("$python" - <<'PY'
import hashlib, pathlib, sys
lock = pathlib.Path("requirements/dev.txt").read_bytes()
print(hashlib.sha256(b"site-packages" + lock + sys.version.encode() + sys.executable.encode()).hexdigest()[:16])
PY
)
deps=$cache/deps-$stamp  # in it a folder site-packages: by that name, tools know that the code is not this project's
if [ ! -f "$deps/complete" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/deps-new-XXXXXX")
  echo "installing the locked dependencies (once per lock file) ..." >&2
  "$python" -m venv "$work/tool"
  "$work/tool/bin/python" -m pip install -q --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
    --target "$work/site-packages" -r requirements/dev.txt
  rm -rf "$work/tool"
  touch "$work/complete"
  # Two checkouts may race: the first rename wins, the loser's copy is dropped.
  mv "$work" "$deps" 2>/dev/null || rm -rf "$work"
  [ ! -d "$deps/$(basename "$work")" ] || rm -rf "${deps:?}/$(basename "$work")"
fi
want="$stamp $(cksum <pyproject.toml)"
if [ "$(cat .venv/fairlead-stamp 2>/dev/null || true)" != "$want" ]; then
  rm -rf .venv
  "$python" -m venv .venv
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$deps/site-packages" >"$site/fairlead-dependencies.pth"
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
  echo "$want" >.venv/fairlead-stamp
fi
