#!/usr/bin/env bash
# Runs the recipes of a study over seeds with run.sh, keeps each run's results in examples/librispeech/results/STUDY/, and writes the
# study's tables and plot into RESULTS.md from those files alone.
#
#   compare.sh wav2vec_s                     everything that is not finished yet, then the tables
#   compare.sh wav2vec_s --jobs 2            two runs at a time
#   compare.sh wav2vec_s --only wav2vec-S    recipes whose name contains this
#   compare.sh wav2vec_s --tables            only the tables, from what results there are
#   compare.sh --tables                      all tables of RESULTS.md: of all studies, and of what decoders.sh has kept
#
#   STUDY                a file of examples/librispeech/studies/, or the path of one like them
#   --jobs N             runs at a time; each gets its share of the CPU's cores (1)
#   --only TEXT          leave out recipes without this in their name
#   --corpus-dir DIR     the corpus, as run.sh takes it
#   --data-dir DIR       prepared data (data/STUDY)
#   --exp-dir DIR        experiments (exp/STUDY); may be removed when the study is done
#   --results-dir DIR    what is kept (examples/librispeech/results/STUDY)
#   --output FILE        where the tables go (RESULTS.md); the plot goes beside the results
#   --tables             run nothing
#   --prepare            prepare the data and stop
#   --part K/N           of N parts of the runs (by condition and seed) only the K-th, and no tables: for jobs on several machines
#   -- FLAG …            further flags for run.sh, such as --nproc 8
#
# Run it again with the same arguments to go on after an interruption. The study's file says what is compared, which settings
# each recipe may choose from, and by which dev set.
set -euo pipefail
# shellcheck source=../path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
case " $* " in
"  " | *" -h "* | *" --help "*)
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    [ -n "${1:-}" ] || exit 2
    ;;
*) installed && exec python "$root/examples/librispeech/compare.py" "$@" ;;
esac
