#!/usr/bin/env bash
# Runs a make target under several versions of Python, each in an environment of its own:
#   tests/pythons.sh test-light 3.12 3.13
# A version without an interpreter is named and does not fail; a failing one does. Looks on the PATH and where pyenv
# keeps them.
set -uo pipefail
cd "$(dirname "$0")/.."
target=$1 passed= failed= missing=
shift

find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-${HOME:-/nowhere}/.pyenv}"/versions/"$1".*/bin/"python$1"; do
    # started, not only found: a shim of pyenv is there for versions that are not active
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

for version in "$@"; do
  python=$(find_python "$version")
  if [ -z "$python" ]; then
    missing+=" $version"
    continue
  fi
  echo "== Python $version ($("$python" -V)): make $target"
  if make --no-print-directory "$target" PYTHON="$python" VENV=".venv-$version"; then passed+=" $version"; else failed+=" $version"; fi
done
echo "== make $target: passed under Python${passed:- none}${failed:+; FAILED under$failed}${missing:+; not run, no interpreter found for$missing}"
[ -z "$failed" ]
