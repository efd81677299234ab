#!/usr/bin/env bash
# What beam search and a language model are worth for a trained model: greedy, beam search, and beam search with an n-gram of training
# transcripts whose weights are searched on dev. Keeps the results in examples/librispeech/results/decoding/NAME/.
#
#   decoders.sh mini --model exp/quickstart/finetune_10h --data exp/quickstart/data --lm-sets 10h
#
#   NAME                 of the folder to keep
#   --model EXP          the model
#   --data DIR           prepared data
#   --lm-sets SET …      sets whose transcripts the n-gram is made of: those that the model was trained on
#   --order N            of the n-gram (4)
#   --dev SET            where the weights are searched (dev-clean)
#   --sets SET …         what is decoded (dev-clean test-clean)
#   --results-dir DIR    what is kept (examples/librispeech/results/decoding)
#
# `compare.sh --tables` puts what is kept into RESULTS.md.
set -euo pipefail
# shellcheck source=../path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
case " $* " in
"  " | *" -h "* | *" --help "*)
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    [ -n "${1:-}" ] || exit 2
    ;;
*) installed && exec python "$root/examples/librispeech/decoders.py" "$@" ;;
esac
