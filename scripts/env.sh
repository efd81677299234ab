# Sourced by the other scripts, and by hand as `. scripts/env.sh` (bash): brings .venv up to date and puts it first in PATH.
_asrkit_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$_asrkit_root/scripts/install.sh" || return 1
export VIRTUAL_ENV="$_asrkit_root/.venv" PATH="$_asrkit_root/.venv/bin:$PATH"
unset PYTHONHOME _asrkit_root
