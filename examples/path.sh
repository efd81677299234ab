# Sourced by the examples' scripts: where the project is, and its environment first in PATH.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$root/.venv/bin/asrkit" ]; then PATH="$root/.venv/bin:$PATH"; fi
# installed stops where there is nothing to run.
installed() {
    type -P asrkit python >/dev/null && return
    echo "${0##*/}: asrkit is not installed (bash scripts/install.sh makes .venv with it)" >&2
    exit 2
}
