#!/usr/bin/env bash
# Runs the tests, linting and type checking among them, in the project's own environment (made on the first run).
#
#   bash scripts/test.sh                      every test but the slow ones
#   bash scripts/test.sh --slow               the slow ones
#   bash scripts/test.sh tests/nn -k mask     other arguments go to pytest
#
# ASRKIT_REAL_SPEECH=DIR adds tests on real speech, where DIR holds LibriSpeech/ and librispeech_finetuning/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

arguments=()
for argument in "$@"; do
    case $argument in
    --slow) arguments+=(-m slow) ;;
    *) arguments+=("$argument") ;;
    esac
done
if [ $# -eq 0 ]; then
    # All of them: a file at a time to each of a few processes, which do not take each other's cores.
    arguments+=(-n auto --maxprocesses 4 --dist loadfile)
    export OMP_NUM_THREADS=1
fi

. scripts/env.sh
exec python -m pytest "${arguments[@]}"
