#!/usr/bin/env bash
# How many updates it takes to reach a word error rate, and where training ends, for several amounts of untranscribed speech: after
# task-agnostic training (pre-training, then fine-tuning) and in task-specific training (wav2vec-S, BL-JUST), over three seeds. One
# table and one plot, written into RESULTS.md from results that are kept; compare.sh does the work, and --help of it has all options.
#
#   scaling.sh                                                    the mini corpus: two hours or so on two CPU cores
#   scaling.sh librispeech --corpus-dir DIR -- --nproc 8          LibriSpeech, one run after another on eight GPUs
#   scaling.sh --tables                                           only table and plot, from what results there are
#
# On a cluster with shared folders, prepare once, let an array of jobs take a part of the runs each, then make the table:
#
#   scaling.sh librispeech --corpus-dir DIR --prepare
#   sbatch --array 1-9 --gpus 8 --wrap 'examples/librispeech/scaling.sh librispeech --corpus-dir DIR --part $SLURM_ARRAY_TASK_ID/9 -- --nproc 8'
#   scaling.sh librispeech --tables
#
#   mini | librispeech   the study: scaling or scaling_librispeech of examples/librispeech/studies (mini)
#   PATH.yaml            a study of your own: other amounts, labels, recipes, seeds or WER
#   …                    further options of compare.sh; what is behind -- goes to run.sh
#
# Run it again with the same arguments to go on after an interruption.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
study=scaling
case ${1:-} in
-h | --help)
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
mini) shift ;;
librispeech) study=scaling_librispeech && shift ;;
*.yaml) study=$1 && shift ;;
"" | --*) ;;
*)
    echo "scaling.sh: '$1' is neither mini nor librispeech nor a study (see scaling.sh --help)" >&2
    exit 2
    ;;
esac
exec bash "$here/compare.sh" "$study" "$@"
