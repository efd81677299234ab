#!/usr/bin/env bash
# Writes constraints.txt anew: one set of exact versions for Linux x86_64 and Python 3.10 to 3.13, from setup.py.
# What is pinned already is kept where it still fits; `scripts/lock.sh --upgrade` takes the newest of everything.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv="$root/.venv/bin/uv"
[ -x "$uv" ] || uv=uv

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$root"/{setup.py,README.md,LICENSE} "$work"
cat >"$work/pyproject.toml" <<'TOML'
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"
[tool.uv]
environments = ["python_full_version < '3.14' and sys_platform == 'linux' and platform_machine == 'x86_64'"]
TOML
echo "uv" >"$work/tools.in"
[ -f "$root/constraints.txt" ] && cp "$root/constraints.txt" "$work/lock.txt"
(cd "$work" && "$uv" pip compile setup.py tools.in --all-extras --universal --python-version 3.10 \
    --no-annotate --no-header --quiet --output-file lock.txt "$@" >/dev/null)

# The markers lose what all of them share: the environments that were resolved for.
{
    echo "# Exact versions, so that the same packages are installed today and next year. Written by scripts/lock.sh."
    sed -E -e "s/ and (implementation_name|platform_python_implementation) != 'PyPy'//" \
        -e "s/ and platform_machine == 'x86_64' and sys_platform == 'linux'//" \
        -e "s/ and python_full_version < '3\.14'//; s/ ; python_full_version < '3\.14'$//" "$work/lock.txt"
} >"$work/constraints.txt"
mv "$work/constraints.txt" "$root/constraints.txt"
