# Sourced by run.sh: where the project is, and its environment first in PATH.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -x "$root/.venv/bin/asrkit" ]; then PATH="$root/.venv/bin:$PATH"; fi
