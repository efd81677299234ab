#!/usr/bin/env bash
# Makes .venv with everything asrkit needs, in the exact versions of constraints.txt. Does nothing where nothing has changed.
# Needs a Python >= 3.10 (PYTHON=… chooses one) and, the first time, the network and 9 GB of disk. No root, no compiler.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
extras="all,fairseq2"

die() {
    echo "install.sh: $*" >&2
    exit 1
}

# Prints a Python that can make the environment. 3.13 and later come last: some optional packages have no wheels for them.
find_python() {
    local range name found path="$PATH:/usr/local/bin:/usr/bin:/bin:/opt/conda/bin"
    local names=("${PYTHON:-python3}")
    [ -n "${PYTHON:-}" ] || names+=(python3.12 python3.11 python3.10 python python3.13 python3.14)
    for range in "(3, 10) <= v < (3, 13)" "v >= (3, 13)"; do
        for name in "${names[@]}"; do
            found=$(PATH=$path type -P "$name") || continue
            "$found" -c "import sys, venv, ssl; v = sys.version_info[:2]; sys.exit(not ($range))" 2>/dev/null || continue
            echo "$found"
            return
        done
    done
    [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a working Python >= 3.10 with its venv and ssl modules"
    die "no Python >= 3.10 found in PATH; install one or name one, e.g. PYTHON=/opt/python3.12/bin/python3 bash scripts/quickstart.sh"
}

# Prints a uv to install with: the environment's own, else fetched by whichever pip there is, else one in PATH.
find_uv() {
    local options=(--quiet --disable-pip-version-check --constraint "$root/constraints.txt")
    local offline="could not get uv from PyPI, see above; is there a network?"
    if [ -x "$venv/bin/uv" ]; then
        echo "$venv/bin/uv"
    elif "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$venv/bin/python" -m pip install "${options[@]}" uv >&2 || die "$offline"
        echo "$venv/bin/uv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install "${options[@]}" --target "$venv/uv" --upgrade uv >&2 || die "$offline"
        echo "$venv/uv/bin/uv"
    elif ! type -P uv; then
        die "$python has neither ensurepip nor pip; install python3-venv or uv, or name another Python by PYTHON=…"
    fi
}

# An environment holds absolute paths, so one that was moved with its folder is made anew.
stamp="$root $extras $(cat "$root/setup.py" "$root/constraints.txt" | cksum)"
if [ -f "$venv/asrkit.stamp" ]; then
    noted=$(cat "$venv/asrkit.stamp")
    if [ "$noted" = "$stamp" ] && "$venv/bin/python" -c "" 2>/dev/null; then exit 0; fi
    [ "${noted#"$root "}" != "$noted" ] || rm -rf "$venv/bin" "$venv"
fi

python=$(find_python)
if ! "$venv/bin/python" -c "" 2>/dev/null; then
    free=$(df -Pk "$root" | awk 'NR == 2 {print int($4 / 1048576)}')
    [ "$free" -ge 9 ] || die "$root has $free GB of free disk, the environment needs 9"
    echo "Making .venv with $("$python" --version) ($python)"
    rm -rf "$venv"
    if "$python" -c "import ensurepip" 2>/dev/null; then
        "$python" -m venv "$venv"
    else
        "$python" -m venv --without-pip "$venv"
    fi
fi

# The system's certificates, so that a company's proxy is trusted; no cache where there is no home to keep it in.
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true}
if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
export PIP_ROOT_USER_ACTION=ignore
if [ ! -w "${HOME:-/nonexistent}" ]; then export UV_NO_CACHE=true PIP_NO_CACHE_DIR=1; fi

uv=$(find_uv)
quiet=()
[ -t 2 ] || quiet=(--quiet)
echo "Installing asrkit and what it needs into .venv (once; a few minutes and 7 GB on a new machine)"
cd "$root"
"$uv" pip install "${quiet[@]}" --python "$venv/bin/python" --constraint constraints.txt --build-constraints constraints.txt \
    --editable ".[$extras]" || die "the installation failed, see above; run the same command again to go on"
echo "$stamp" >"$venv/asrkit.stamp"
