#!/bin/sh
# kubectl fairlead: installs its packages at the first call, then runs.
# FAIRLEAD_PYTHON: the interpreter to use instead of python3.
set -eu
here=$(dirname "$(readlink -f "$0")")
environment=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead/kubectl-@VERSION@
if [ ! -f "$environment/complete" ]; then
  python=${FAIRLEAD_PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "kubectl fairlead needs Python 3.11 or later; set FAIRLEAD_PYTHON to one" >&2
    exit 1
  }
  echo "installing the packages of kubectl fairlead @VERSION@, once ..." >&2
  mkdir -p "$(dirname "$environment")"
  work=$(mktemp -d "$environment-new-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "$python" -m venv "$work"
  "$work/bin/python" -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r "$here/requirements.txt"
  "$work/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-index "$here/@WHEEL@"
  touch "$work/complete"
  # Two calls may race: the first rename wins.
  mv "$work" "$environment" 2>/dev/null || rm -rf "$work"
  rm -rf "$environment/$(basename "$work")"
  trap - EXIT
fi
exec "$environment/bin/python" -I -c 'import sys; sys.argv[0] = "kubectl-fairlead"; from fairlead_cli.__main__ import main; main()' "$@"
