#!/usr/bin/env bash
# A speech recogniser for any language from an hour of transcripts, a pile of recordings, and a pre-trained checkpoint.
#
#   run.sh --labelled DIR --unlabelled DIR --init facebook/wav2vec2-xls-r-300m     wav2vec-S, then fine-tuning
#   run.sh --labelled DIR --init SOURCE                                            fine-tuning alone
#   run.sh --labelled DIR --unlabelled DIR --init none                             pre-trains a small model itself
#   run.sh … -- finetune.updates=2000 data.batch_seconds=50                        other settings
#
#   --labelled DIR              transcribed speech: tables (*.tsv, *.csv, *.jsonl with columns audio, text and perhaps speaker),
#                               Kaldi data, or recordings with a .txt of the same name beside each, a folder per speaker. Dev and
#                               test sets are what is called dev… and test… in there, or else cut off by speakers
#   --unlabelled DIR            recordings without transcripts; long ones are cut at pauses
#   --init SOURCE               what `asrkit import` takes (a name on the Hugging Face hub, a folder, a fairseq file, …), an
#                               experiment folder of asrkit, or none
#   --method NAME               wav2vec_s, bl_just or finetune (wav2vec_s; without --unlabelled finetune)
#   --case, --punctuation, --alphabet   as for asrkit prepare
#   --exp-dir DIR               everything goes here (exp/own_language)
#   --seed N                    (1)
#   --nproc N                   processes, one per GPU (1)
#   --stage N, --stop-stage M   first and last stage to run (0 and 6):
#                               0 dev and test sets      1 prepare                          2 import (without --init pre-train)
#                               3 the method's stage     4 fine-tune (within bl_just's 3)   5 decode    6 score and report
#   -- KEY=VALUE …              changes to the configuration: a method's own section goes to its stage, all else to every one
#
# Run it again with the same arguments to go on after an interruption.
set -euo pipefail
# shellcheck source=../path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
here=$root/examples/own_language conf=$root/conf/own_language

# shellcheck source=../stages.sh
. "$root/examples/stages.sh"

labelled="" unlabelled="" init="" method="" case="" punctuation="" alphabet="" exp_dir="" seed=1 nproc=1 stage=0 stop_stage=6
overrides=()
while [ $# -gt 0 ]; do
    flag=$1
    shift
    case $flag in
    --labelled | --unlabelled | --init | --method | --case | --punctuation | --alphabet | --exp-dir | --seed | --nproc | --stage | \
        --stop-stage)
        [ $# -gt 0 ] && [ -n "$1" ] && [ "${1#--}" = "$1" ] || die "$flag needs a value (see run.sh --help)"
        name=${flag#--}
        printf -v "${name//-/_}" %s "$1"
        shift
        ;;
    --)
        overrides=("$@")
        break
        ;;
    -h | --help)
        sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *) die "unknown argument '$flag' (see run.sh --help; configuration goes behind --)" ;;
    esac
done

[ -n "$labelled" ] || die "--labelled DIR is missing: the transcribed speech (see run.sh --help)"
[ -n "$init" ] || die "--init is missing: a checkpoint to start from, such as facebook/wav2vec2-xls-r-300m, or none"
for folder in "$labelled" ${unlabelled:+"$unlabelled"}; do [ -d "$folder" ] || die "$folder: no such folder"; done
if [ -n "$unlabelled" ]; then method=${method:-wav2vec_s}; else method=${method:-finetune}; fi
case $method in
finetune) ;;
wav2vec_s | bl_just) [ -n "$unlabelled" ] || die "--method $method needs --unlabelled DIR" ;;
*) die "--method $method: not one of wav2vec_s bl_just finetune" ;;
esac
[ "$init" != none ] || [ -n "$unlabelled" ] || die "--init none needs --unlabelled DIR: there would be nothing to learn from"
whole_number seed nproc
[ "$nproc" -gt 0 ] || die "--nproc $nproc: at least 1"
check_stages

size=init
[ "$init" != none ] || size=small
stages=(finetune)
[ "$method" = finetune ] || stages+=("$method")
[ "$init" != none ] || [ "$method" = bl_just ] || stages+=(pretrain)
for override in "${overrides[@]}"; do
    key=${override%%=*}
    case $override in [a-z]*=*) ;; *) die "'$override' behind -- is not KEY=VALUE" ;; esac
    case $key in
    method | seed | init | exp_dir | data.dir | data.*.sets | data.dev) die "'$override' behind --: the script sets it" ;;
    esac
    case ${key%%.*} in
    pretrain | finetune | wav2vec_s | bl_just)
        case " ${stages[*]} " in
        *" ${key%%.*} "*) ;;
        *) die "'$override' behind --: this run has no stage of the method ${key%%.*}" ;;
        esac
        ;;
    esac
done

# overrides_for STAGE prints what is behind -- that concerns a stage, one per line.
overrides_for() {
    local override
    for override in "${overrides[@]}"; do
        case ${override%%[.=]*} in
        "$1") ;;
        pretrain | finetune | wav2vec_s | bl_just) continue ;;
        esac
        printf '%s\n' "$override"
    done
}
for name in "${stages[@]}"; do
    [ "$name-$method" = finetune-bl_just ] || to_check "$name" "$conf/${name}_$size.yaml"
done
check_settings

exp_dir=$(absolute "${exp_dir:-$root/exp/own_language}")
labelled=$(absolute "$labelled")
[ -z "$unlabelled" ] || unlabelled=$(absolute "$unlabelled")
[ ! -e "$init" ] || init=$(absolute "$init")
data=$exp_dir/data start=$exp_dir/start refined=$exp_dir/$method tuned=$exp_dir/finetune
[ ! -f "$init/config.yaml" ] || start=$init
if [ "$init" = none ]; then
    start=$exp_dir/pretrain
    [ "$method" != bl_just ] || start=""
fi
[ "$method" != bl_just ] || tuned=$refined

# A folder notes what made it, and is not mixed with anything else.
settings="labelled=$labelled unlabelled=$unlabelled init=$init method=$method seed=$seed text=$case/$punctuation/$alphabet"
mkdir -p "$exp_dir"
exec 9<"$exp_dir"
if type -P flock >/dev/null; then
    flock --nonblock --conflict-exit-code 9 9 2>/dev/null || { [ $? -ne 9 ] || die "another run is writing to $exp_dir"; }
fi
made() { compgen -G "$data/*/set.json" >/dev/null || compgen -G "$exp_dir/*/config.yaml" >/dev/null; }
if [ -f "$exp_dir/recipe.settings" ] && [ "$(cat "$exp_dir/recipe.settings")" != "$settings" ] && made; then
    die "$exp_dir was made with other arguments ($(cat "$exp_dir/recipe.settings")); choose another --exp-dir, or remove it"
fi
echo "$settings" >"$exp_dir/recipe.settings"

begin() {
    [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ] || return 1
    installed
    at_work=$1
    printf '\n== Stage %s: %s\n' "$1" "$2"
}
skip() {
    if [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]; then printf '\n== Stage %s: skipped, %s\n' "$1" "$2"; fi
}
# train STAGE EXP KEY=VALUE…
train() {
    local command=(asrkit) changes
    [ "$nproc" -eq 1 ] || command=(torchrun --standalone --nproc-per-node "$nproc" --module asrkit)
    mapfile -t changes < <(overrides_for "$1")
    "${command[@]}" train "$conf/$1_$size.yaml" "exp_dir=$2" "seed=$seed" "data.dir=$data" "${@:3}" "${changes[@]}"
}
trained() { [ -e "$1/checkpoints/last" ] || die "$1 holds no model (run stage $2)"; }

if begin 0 "dev and test sets of other speakers"; then
    python "$here/split.py" "$labelled" --output "$data/labelled.jsonl" --seed "$seed"
fi

if [ "$stage" -lt 1 ] && [ -f "$data/prepared" ] && cmp -s "$data/labelled.jsonl" "$data/prepared"; then
    skip 1 "$data is prepared (--stage 1 does it again)"
elif begin 1 "manifests, index and alphabet"; then
    [ -f "$data/labelled.jsonl" ] || die "$data/labelled.jsonl is not there (run stage 0)"
    text=()
    for flag in case punctuation alphabet; do
        [ -z "${!flag}" ] || text+=("--$flag" "${!flag}")
    done
    asrkit prepare table "$data/labelled.jsonl" --output-dir "$data" "${text[@]}"
    [ -z "$unlabelled" ] || asrkit prepare audio "untranscribed=$unlabelled" --output-dir "$data"
    cp "$data/labelled.jsonl" "$data/prepared"
fi

if [ "$start" = "$init" ]; then
    skip 2 "$init is an experiment already"
elif [ -z "$start" ]; then
    skip 2 "bl_just starts from scratch"
elif [ "$init" != none ] && [ -f "$start/config.yaml" ]; then
    skip 2 "$init is imported"
elif begin 2 "$([ "$init" = none ] && echo "pre-training on all speech" || echo "importing $init")"; then
    if [ "$init" = none ]; then
        train pretrain "$start"
    else
        rm -rf "$start" # what an import left there that did not get to its end
        asrkit import "$init" --output "$start" --encoder-only
    fi
fi

if [ "$method" = finetune ]; then
    skip 3 "fine-tuning alone was asked for"
elif begin 3 "$method on transcripts and recordings"; then
    [ -z "$start" ] || trained "$start" 2
    train "$method" "$refined" ${start:+"init=$start"}
fi

if [ "$method" = bl_just ]; then
    skip 4 "the last phase of bl_just is the fine-tuning"
elif begin 4 "CTC on the transcripts"; then
    if [ "$method" = finetune ]; then
        trained "$start" 2
        train finetune "$tuned" "init=$start"
    else
        trained "$refined" 3
        # The units are the same: the head has learnt already.
        train finetune "$tuned" "init=$refined" finetune.keep_head=true
    fi
fi

sets=()
for folder in "$data"/{dev,test}*; do
    if [ -f "$folder/set.json" ]; then sets+=("$(basename "$folder")"); fi
done
if begin 5 "decoding"; then
    trained "$tuned" 4
    [ ${#sets[@]} -gt 0 ] || die "$data holds no dev or test set (run stage 1)"
    asrkit decode --model "$tuned" --data "$data" --sets "${sets[@]}"
fi

if begin 6 "error rates"; then
    compgen -G "$tuned/decode/*/*/results.json" >/dev/null || die "$tuned/decode holds no results (run stage 5)"
    asrkit results "$tuned/decode" --output "$exp_dir/results.txt"
    shown=("$tuned")
    [ "$refined" = "$tuned" ] || [ ! -f "$refined/config.yaml" ] || shown+=("$refined")
    asrkit report "${shown[@]}" --output "$exp_dir/report.html"
    printf '\nA recogniser: asrkit transcribe --model %s AUDIO\n' "$tuned"
    [ "$init" = none ] || printf 'For transformers: asrkit export %s --format huggingface --output exported\n' "$tuned"
fi
