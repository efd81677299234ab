#!/usr/bin/env bash
# From much untranscribed and a little transcribed speech to a recogniser and its error rates, for LibriSpeech and for anything in
# its layout; `--corpus mini` is a synthetic corpus of that layout.
#
#   run.sh --corpus mini                                                     all stages, minutes on two CPU cores
#   run.sh --corpus librispeech --corpus-dir DIR --size base --subset 10h    DIR holds LibriSpeech/
#   run.sh --corpus librispeech --init exp/other/pretrain --subset 1h        starts from a model there is already
#   run.sh --corpus mini --method wav2vec_s --source 9h --subset 10min       wav2vec-S between pre-training and fine-tuning
#   run.sh --corpus mini --stage 5                                           decoding and scoring again
#   run.sh --corpus mini -- pretrain.head=best_rq pretrain.wav2vec2=null      BEST-RQ in the place of wav2vec 2.0
#   run.sh --corpus mini -- pretrain.updates=800 data.batch_seconds=50       other settings
#
#   --stage N, --stop-stage M   first and last stage to run (0 and 6):
#                               0 download or check the corpus      1 prepare manifests (and synthesise, for mini)
#                               2 pre-train (skipped with --init)   3 the method's own stage (none for finetune)
#                               4 fine-tune on --subset             5 decode dev and test sets    6 score and report
#   --corpus NAME               mini or librispeech (mini)
#   --domain NAME               of the corpus mini: slow, fast or noisy, a smaller corpus of one kind of speech
#   --corpus-dir DIR            holds LibriSpeech/ and perhaps librispeech_finetuning/ (corpora/CORPUS, or corpora/CORPUS_DOMAIN)
#   --download                  fetch into --corpus-dir what is missing there; without --corpus-dir this is the default
#   --method NAME               finetune: pre-train, fine-tune (the default)
#                               wav2vec_s: pre-train, wav2vec-S with labels of --source, fine-tune
#                               supervised: pre-train, CTC on the labels of --source alone, fine-tune (wav2vec-S's control)
#                               bl_just, weighted_sum: both losses in one run from random weights, labels of --subset
#   --pretraining NAME          the method of stage 2: pretrain, or heterogeneous, on the sources of its configuration (pretrain)
#   --config NAME               a folder of conf/: mini, study or librispeech (CORPUS)
#   --size NAME                 mini, small, base or large, as far as conf/CONFIG has it (mini; librispeech: base)
#   --source NAME               labels of stage 3, for methods that have some of their own: a subset (100h; mini: 9h)
#   --subset NAME               labelled speech of the last stage: 10min, 1h, 9h, 10h, 100h or 960h (10h)
#   --follow NAME               whose settings the fine-tuning of base and large has, where the two differ: fairseq, its released
#                               configurations, or paper, the wav2vec 2.0 paper's table 6 (fairseq)
#   --init EXP                  an experiment to start from in place of stage 2, such as `asrkit import` makes of a published
#                               checkpoint; `scratch` starts from random weights
#   --lm NAME                   a language model for stage 5, which then decodes with and without, its weights searched on
#                               dev-clean: train (a 4-gram of the transcripts of --subset), official or official-small
#                               (LibriSpeech's own 4-gram, or a 3-gram for little memory, fetched in stage 0) (none). Stage 0
#                               also fetches the lexicon of units.lexicon=CORPUS_DIR/lm/librispeech-lexicon.txt
#   --seed N                    (1)
#   --data-dir DIR              prepared data (data/CORPUS, or data/CORPUS_DOMAIN)
#   --exp-dir DIR               experiments (exp/CORPUS_CONFIG_SIZE_seedN)
#   --nproc N                   processes, one per GPU (1)
#   --nnodes N                  machines that train together (1). Each runs this command, with folders that all of them share; the
#                               first one does what is not training, the others wait for it
#   --node-rank R               which of them this one is, from 0 (SLURM_NODEID)
#   --master HOST[:PORT]        how the others reach the first one; PORT + 2 to PORT + 4 must be free there (29500)
#   -- KEY=VALUE …              changes to the configuration: a method's own section (pretrain.updates=800) goes to the
#                               stage of that method (finetune's to stage 4, supervised's to stage 3), everything else to
#                               every training stage
#
# Run it again with the same arguments to go on after an interruption. Stage 1 is not repeated once it is done, unless a run
# begins with it (--stage 1).
set -euo pipefail
# shellcheck source=../path.sh
. "$(dirname "${BASH_SOURCE[0]}")/../path.sh"
# shellcheck source=../stages.sh
. "$root/examples/stages.sh"

stage=0 stop_stage=6 corpus=mini domain="" pretraining=pretrain corpus_dir="" download=no method=finetune config="" size="" source="" subset=10h follow=fairseq
init="" lm=none seed=1 data_dir="" exp_dir="" nproc=1 nnodes=1 node_rank="" master="" overrides=()
while [ $# -gt 0 ]; do
    flag=$1
    shift
    case $flag in
    --stage | --stop-stage | --corpus | --domain | --corpus-dir | --method | --pretraining | --config | --size | --source | \
        --subset | --follow | --init | --lm | --seed | --data-dir | --exp-dir | --nproc | --nnodes | --node-rank | --master)
        [ $# -gt 0 ] && [ -n "$1" ] && [ "${1#--}" = "$1" ] || die "$flag needs a value (see run.sh --help)"
        name=${flag#--}
        printf -v "${name//-/_}" %s "$1"
        shift
        ;;
    --download) download=yes ;;
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

one_of --corpus "$corpus" mini librispeech
[ -z "$domain" ] || [ "$corpus" = mini ] || die "--domain $domain: only the corpus mini has domains"
pretrainings=(pretrain heterogeneous)
one_of --pretraining "$pretraining" "${pretrainings[@]}"
config=${config:-$corpus}
one_of --config "$config" $(cd "$root/conf" && printf '%s\n' */ | tr -d /)
case $config in mini | study) size=${size:-mini} ;; *) size=${size:-base} ;; esac
sizes=()
for name in mini small base large; do
    if compgen -G "$root/conf/$config/*_$name.yaml" >/dev/null; then sizes+=("$name"); fi
done
one_of --size "$size" "${sizes[@]}"
check_stages
one_of --lm "$lm" none train official official-small
case $lm in official*) [ "$corpus" = librispeech ] || die "--lm $lm is made for LibriSpeech; for $corpus there is --lm train" ;; esac
one_of --follow "$follow" fairseq paper
whole_number seed nproc nnodes
for flag in nproc nnodes; do [ "${!flag}" -gt 0 ] || die "--$flag ${!flag}: at least 1"; done
if [ "$nnodes" -eq 1 ]; then
    [ -z "$node_rank$master" ] || die "--node-rank and --master are for several machines (--nnodes N)"
    node_rank=0
else
    node_rank=${node_rank:-${SLURM_NODEID:-}}
    [ -n "$node_rank" ] || die "--nnodes $nnodes: which of them is this one? (--node-rank R, from 0)"
    [ -n "$master" ] || die "--nnodes $nnodes: how do the others reach the first one? (--master HOST[:PORT])"
fi
master_port=29500
case $master in *:*) master_port=${master##*:} master=${master%:*} ;; esac
whole_number node_rank master_port
[ "$node_rank" -lt "$nnodes" ] || die "--node-rank $node_rank: not one of 0 to $((nnodes - 1))"

# sets_of FLAG SUBSET prints the prepared sets that a subset stands for; the small ones are Libri-light's label-limited folds.
sets_of() {
    case $2 in
    10min | 1h | 9h | 10h) echo "$2" ;;
    100h) echo train-clean-100 ;;
    960h) echo train-clean-100 train-clean-360 train-other-500 ;;
    *) die "$1 $2: not one of 10min 1h 9h 10h 100h 960h" ;;
    esac
}
labelled=$(sets_of --subset "$subset") || exit
read -ra labelled <<<"$labelled"

# Which stages a method has: `tune` fine-tunes only; `refine` has a stage of its own before that, with labels of its own;
# `joint` is one run in stage 3 that ends with its own fine-tuning.
conf=$root/conf/$config
case $method in
wav2vec_s | supervised) route=refine ;;
bl_just | weighted_sum) route=joint ;;
*) route=tune ;;
esac
methods=()
for file in "$conf"/*_"$size".yaml; do
    name=$(basename "$file" "_$size.yaml")
    case $name in model | pretrain_* | scratch | *_scratch) continue ;; esac
    case " ${pretrainings[*]} " in *" $name "*) ;; *) methods+=("$name") ;; esac
done
one_of --method "$method" "${methods[@]}"
# config_of NAME SUBSET prints the configuration of a stage: the subset's own where there is one.
config_of() {
    local file=$conf/${1}_${size}_$2.yaml
    if [ "$1 $follow" = "finetune paper" ]; then
        file=$conf/finetune_${size}_${2/#9h/10h}_paper.yaml
        [ -f "$file" ] || die "--follow paper: no configuration $file (the paper's are for librispeech, base and large)"
    fi
    [ -f "$file" ] || file=$conf/${1}_$size.yaml
    [ -f "$file" ] || die "no configuration $file"
    echo "$file"
}
sourced=()
if [ "$route" = refine ]; then
    case $corpus in mini) source=${source:-9h} ;; *) source=${source:-100h} ;; esac
    sourced=$(sets_of --source "$source") || exit
    read -ra sourced <<<"$sourced"
elif [ -n "$source" ]; then
    die "--source $source: the method $method has labels of --subset only"
fi

# Without pre-training other updates, rates and masks are best: `scratch` has configurations of its own.
own=$method
case $route-$init in
tune-scratch) own=scratch ;;
refine-scratch) if [ -f "$conf/${method}_scratch_$size.yaml" ]; then own=${method}_scratch; fi ;;
joint-) init=scratch ;;
esac
tune_config="" refine_config=""
case $route in
tune) tune_config=$(config_of "$own" "$subset") || exit ;;
refine)
    refine_config=$(config_of "$own" "$source") || exit
    tune_config=$(config_of finetune "$subset") || exit
    ;;
joint) refine_config=$(config_of "$own" "$subset") || exit ;;
esac
case $follow-$route-$own in
paper-joint-* | paper-*-scratch) die "--follow paper: this run has no fine-tuning of a pre-trained model" ;;
esac
pretrain_config=$conf/${pretraining}_$size.yaml
[ -n "$init" ] || [ -f "$pretrain_config" ] || die "no configuration $pretrain_config"

# A method's own section exists in the configuration of its stage only; what a flag sets is not set twice.
stages=("$method")
[ "$route" != refine ] || stages+=(finetune)
[ -n "$init" ] || stages+=("$pretraining")
for override in "${overrides[@]}"; do
    key=${override%%=*}
    case $override in [a-z]*=*) ;; *) die "'$override' behind -- is not KEY=VALUE" ;; esac
    case $key in
    method | seed | init) die "'$override' behind --: use --$key" ;;
    exp_dir | data.dir) die "'$override' behind --: use --${key/[._]/-}" ;;
    data.labelled.sets) die "'$override' behind --: use --subset" ;;
    esac
    case " ${pretrainings[*]} ${methods[*]} " in
    *" ${key%%.*} "*)
        case " ${stages[*]} " in
        *" ${key%%.*} "*) ;;
        *) die "'$override' behind --: this run has no stage of the method ${key%%.*}" ;;
        esac
        ;;
    esac
done
# overrides_for STAGE prints what is behind -- that concerns a stage, one per line; `supervised` is a stage of the method finetune.
overrides_for() {
    local override other
    for override in "${overrides[@]}"; do
        for other in "${pretrainings[@]}" "${methods[@]}"; do
            [ "$other" = "$1" ] || [ "${override%%[.=]*}" != "$other" ] || continue 2
        done
        printf '%s\n' "${override/#supervised./finetune.}"
    done
}

[ -n "$corpus_dir" ] || download=yes
corpus_dir=$(absolute "${corpus_dir:-$root/corpora/$corpus${domain:+_$domain}}")
data_dir=$(absolute "${data_dir:-$root/data/$corpus${domain:+_$domain}}")
exp_dir=$(absolute "${exp_dir:-$root/exp/${corpus}${domain:+_$domain}_${config}_${size}_seed$seed}")
case $init in "" | scratch) ;; *) init=$(absolute "$init") ;; esac
case $follow in paper) variant=_paper ;; *) variant="" ;; esac
pretrained=$exp_dir/$pretraining refined="" tuned=$exp_dir/${own}_$subset$variant
if [ "$route" = refine ]; then
    # With random weights at its beginning a run is another one.
    case $init in scratch) name=${method}_scratch ;; *) name=$method ;; esac
    refined=$exp_dir/${name}_$source tuned=$exp_dir/${name}_${source}_finetune_$subset$variant
fi
# The file of --lm, and what is fetched beside speech.
lm_file="" text_parts=()
case $lm in
train) lm_file=$tuned/lm/train_4gram.arpa ;;
official) lm_file=$corpus_dir/lm/4-gram.arpa.gz text_parts=(4-gram) ;;
official-small) lm_file=$corpus_dir/lm/3-gram.pruned.1e-7.arpa.gz text_parts=(3-gram-small) ;;
esac
for override in "${overrides[@]}"; do
    case $override in
    units.lexicon=*)
        [ "$(absolute "${override#*=}")" != "$corpus_dir/lm/librispeech-lexicon.txt" ] || text_parts+=(lexicon)
        ;;
    esac
done

# Of several machines only the first one checks and writes; the others follow it into the training stages.
first() { [ "$node_rank" -eq 0 ]; }

# What comes at once, `asrkit train` checks itself.
to_come=0
# check NUMBER STAGE CONFIG
check() {
    if [ "$1" -lt "$stage" ] || [ "$1" -gt "$stop_stage" ]; then return; fi
    to_come=$((to_come + 1))
    to_check "$2" "$3"
}
[ "$stage" -gt 1 ] || to_come=1
[ -n "$init" ] || check 2 "$pretraining" "$pretrain_config"
[ "$route" = tune ] || check 3 "$method" "$refine_config"
case $route in
refine) check 4 finetune "$tune_config" ;;
tune) check 4 "$method" "$tune_config" ;;
esac
if first && [ "$to_come" -gt 1 ]; then check_settings; fi

# Every folder that a stage writes notes the settings that made it; of what is behind --, `asrkit train` knows which may change.
# agree DIR KEY=VALUE… stops where DIR was made with another value of a key; settle DIR KEY=VALUE… also notes them, and holds
# DIR until run.sh and the commands it started are gone, so that no second run writes into it.
agree() {
    local dir=$1 setting key noted
    first || return 0
    # A stage that failed before it had made anything binds nobody.
    [ -f "$dir/recipe.settings" ] || return 0
    [ -e "$dir/checkpoints/last" ] || compgen -G "$dir/*/set.json" >/dev/null || return 0
    shift
    for setting in "$@"; do
        key=${setting%%=*}
        noted=$(sed -n "s/^$key=//p" "$dir/recipe.settings")
        [ "$noted" = "${setting#*=}" ] ||
            die "$dir was made with $key '$noted', not '${setting#*=}' (choose another --exp-dir or --data-dir, or remove it)"
    done
}
settle() {
    local hold status=0
    first || return 0
    mkdir -p "$1"
    # A file, and open for writing: NFS gives no lock on a folder.
    exec {hold}>>"$1/.run.lock"
    # 9: taken. Anything else that goes wrong is a file system without locks.
    if type -P flock >/dev/null; then flock --nonblock --conflict-exit-code 9 "$hold" 2>/dev/null || status=$?; fi
    [ "$status" -ne 9 ] || die "another run is writing to $1"
    agree "$@"
    printf '%s\n' "${@:2}" >"$1/recipe.settings.part"
    mv "$1/recipe.settings.part" "$1/recipe.settings"
}
data_settings=("corpus=$corpus${domain:+_$domain}" "corpus_dir=$corpus_dir")
pretrain_settings=("corpus=$corpus${domain:+_$domain}" "data_dir=$data_dir" "config=$config" "size=$size" "seed=$seed")
start=${init:-${pretraining#pretrain}}
refine_settings=("${pretrain_settings[@]}" "method=$method" "source=$source" "init=$start")
tune_settings=("${pretrain_settings[@]}" "method=$method" "subset=$subset" "init=$start")
[ "$route" != refine ] || tune_settings+=("source=$source")

# begin NUMBER TITLE READS WRITES is true where the stage is wanted.
begin() {
    [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ] || return 1
    installed
    if ! first; then
        case $1 in 2 | 3 | 4) ;; *) return 1 ;; esac
        printf '\n== Stage %s: waiting for the first machine, %s\n' "$1" "$master:$((master_port + $1))"
    fi
    began=$SECONDS at_work=$1
    printf '\n== Stage %s: %s\n   reads  %s\n   writes %s\n' "$1" "$2" "$3" "${4:-nothing}"
}
finish() {
    at_work=""
    printf '   stage %s took %d s\n' "$1" $((SECONDS - began))
}
skip() {
    if [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]; then printf '\n== Stage %s: skipped, %s\n' "$1" "$2"; fi
}

# require SET… stops where a set is not prepared.
require() {
    local name
    first || return 0
    for name in "$@"; do
        [ -f "$data_dir/$name/set.json" ] || die "$data_dir holds no prepared set $name (run stage 1; is it in $corpus_dir?)"
    done
}
# train STAGE CONFIG EXP KEY=VALUE…
train() {
    local command=(asrkit) changes
    if [ "$nnodes" -gt 1 ]; then
        # A port for each stage: who is done with one early must not join its end. Preparing a corpus may take the first one hours.
        command=(torchrun --nnodes "$nnodes" --node-rank "$node_rank" --nproc-per-node "$nproc" --master-addr "$master"
            --master-port $((master_port + at_work)) --rdzv-conf timeout=86400 --module asrkit)
    elif [ "$nproc" -gt 1 ]; then
        command=(torchrun --standalone --nproc-per-node "$nproc" --module asrkit)
    fi
    mapfile -t changes < <(overrides_for "$1")
    "${command[@]}" train "$2" "exp_dir=$3" "seed=$seed" "data.dir=$data_dir" "${@:4}" "${changes[@]}"
}
listed() { (IFS=, && echo "[$*]"); }
# from_start EXP prints the init of a stage that starts where the last one before it ended: EXP if that is not empty, else what
# --init names, else the pre-trained model.
from_start() {
    local start=$1
    if [ -z "$start" ]; then
        case $init in
        scratch) return ;;
        "") start=$pretrained ;;
        *)
            [ -e "$init/config.yaml" ] || die "--init $init: not an experiment folder (asrkit import makes one of another toolkit's checkpoint)"
            start=$init
            ;;
        esac
    fi
    ! first || [ "$start" = "$init" ] || [ -e "$start/checkpoints/last" ] ||
        die "$start holds no trained model (run stage $([ "$start" = "$pretrained" ] && echo "2, or give --init" || echo 3))"
    echo "init=$start"
}

# The parts of the corpus that the stages to come read, one per line.
corpus_parts() {
    local name config file files=()
    for name in "${labelled[@]}" "${sourced[@]}"; do
        case $name in *h | *min) echo librispeech_finetuning ;; *) echo "$name" ;; esac
    done
    [ -n "$init" ] || files=("$pretrain_config")
    for file in ${tune_config:+"$tune_config"} ${refine_config:+"$refine_config"} "${files[@]}"; do
        config=$(python "$root/examples/librispeech/sets.py" "$file" "${overrides[@]}") || exit
        tr ' ' '\n' <<<"$config"
    done
}
check_corpus() {
    local home=$corpus_dir part parent
    [ -d "$corpus_dir" ] || die "--corpus-dir $corpus_dir: no such folder (--download fetches the corpus into it)"
    [ ! -d "$home/LibriSpeech" ] || home=$home/LibriSpeech
    for part in "$@"; do
        parent=$home
        [ "$part" != librispeech_finetuning ] || [ "$home" = "$corpus_dir" ] || parent=$corpus_dir
        [ -d "$parent/$part" ] || die "$parent has no folder $part (--download fetches it)"
    done
    compgen -G "$home/test-*" >/dev/null || die "$home has no folder test-* (--download fetches it)"
}

if [ "$download" = yes ]; then network="the network"; else network=""; fi
if [ "$corpus" = mini ]; then
    skip 0 "the mini corpus is not downloaded but synthesised in stage 1"
elif begin 0 "corpus" "$corpus_dir${network:+, $network}" "${network:+$corpus_dir}"; then
    parts=$(corpus_parts | sed '/^$/d' | sort -u)
    mapfile -t parts <<<"$parts"
    if [ "$download" = yes ]; then
        mapfile -t fetched < <(printf '%s\n' "${parts[@]}" "${text_parts[@]}" dev-clean dev-other test-clean test-other | sort -u)
        python -m asrkit.data.download --corpus-dir "$corpus_dir" "${fetched[@]}"
    fi
    check_corpus "${parts[@]}"
    case $lm in official*) [ -f "$lm_file" ] || die "--lm $lm: $lm_file is not there (--download fetches it)" ;; esac
    finish 0
fi

# What stage 1 found when it was last done, to tell whether there is anything new.
prepared=$data_dir/recipe.prepared
folders() { (cd "$corpus_dir" 2>/dev/null && ls -d LibriSpeech/*/ librispeech_finetuning/*/ *-*/ 2>/dev/null) || true; }
if [ "$stage" -eq 0 ] && [ "$stop_stage" -ge 1 ] && [ -f "$prepared" ] && [ "$(folders)" = "$(cat "$prepared")" ]; then
    agree "$data_dir" "${data_settings[@]}"
    skip 1 "$data_dir is prepared (--stage 1 does it again)"
elif begin 1 "manifests, index and units" "$corpus_dir" "$data_dir"; then
    settle "$data_dir" "${data_settings[@]}"
    asrkit prepare "$corpus" ${domain:+--domain "$domain"} --corpus-dir "$corpus_dir" --output-dir "$data_dir"
    folders >"$prepared"
    finish 1
fi

if [ -n "$init" ]; then
    skip 2 "--init $init stands for it"
elif begin 2 "pre-training on all speech, without its transcripts" "$data_dir" "$pretrained"; then
    agree "$data_dir" "${data_settings[0]}"
    settle "$pretrained" "${pretrain_settings[@]}"
    train "$pretraining" "$pretrain_config" "$pretrained"
    finish 2
fi

if [ "$route" = tune ]; then
    skip 3 "the method $method has no stage of its own"
elif [ "$route" = refine ] && begin 3 "$method with the labels of $source" "$data_dir${init:+, $init}" "$refined"; then
    agree "$data_dir" "${data_settings[0]}"
    require "${sourced[@]}"
    [ -n "$init" ] || agree "$pretrained" "${pretrain_settings[@]}"
    start=$(from_start "") || exit
    settle "$refined" "${refine_settings[@]}"
    # Where nothing has learnt yet, nothing is to be frozen.
    section=${method/#supervised/finetune} thaw=()
    case $init in scratch) thaw=("$section.freeze_frontend=false" "$section.freeze_updates=0") ;; esac
    train "$method" "$refine_config" "$refined" ${start:+"$start"} "${thaw[@]}" \
        "data.labelled.sets=$(listed "${sourced[@]}")"
    finish 3
elif [ "$route" = joint ] && begin 3 "$method with the labels of $subset" "$data_dir" "$tuned"; then
    agree "$data_dir" "${data_settings[0]}"
    require "${labelled[@]}"
    start=$(from_start "") || exit
    settle "$tuned" "${tune_settings[@]}"
    train "$method" "$refine_config" "$tuned" ${start:+"$start"} "data.labelled.sets=$(listed "${labelled[@]}")"
    finish 3
fi

if [ "$route" = joint ]; then
    skip 4 "the last phase of $method is the fine-tuning"
elif begin 4 "CTC on the labelled subset $subset" "$data_dir, ${refined:-${init:-$pretrained}}" "$tuned"; then
    agree "$data_dir" "${data_settings[0]}"
    require "${labelled[@]}"
    keep=""
    if [ "$route" = refine ]; then
        agree "$refined" "${refine_settings[@]}"
        # The units are the same: the head has learnt already.
        keep=finetune.keep_head=true
    elif [ -z "$init" ]; then
        agree "$pretrained" "${pretrain_settings[@]}"
    fi
    start=$(from_start "$refined") || exit
    settle "$tuned" "${tune_settings[@]}"
    stage4=finetune
    [ "$route" = refine ] || stage4=$method
    train "$stage4" "$tune_config" "$tuned" ${start:+"$start"} ${keep:+"$keep"} "data.labelled.sets=$(listed "${labelled[@]}")"
    finish 4
fi

if begin 5 "decoding" "$data_dir, $tuned" "$tuned/decode"; then
    agree "$tuned" "${tune_settings[@]}"
    [ -e "$tuned/checkpoints/last" ] || die "$tuned holds no trained model (run stage $([ "$route" = joint ] && echo 3 || echo 4))"
    sets=()
    for folder in "$data_dir"/{dev,test}*; do
        if [ -f "$folder/set.json" ]; then sets+=("$(basename "$folder")"); fi
    done
    [ ${#sets[@]} -gt 0 ] || die "$data_dir holds no prepared set dev* or test* (run stage 1)"
    asrkit decode --model "$tuned" --data "$data_dir" --sets "${sets[@]}"
    if [ "$lm" != none ]; then
        require dev-clean
        [ "$lm" != train ] || asrkit lm train --data "$data_dir" --sets "${labelled[@]}" --order 4 --output "$lm_file"
        [ -f "$lm_file" ] || die "--lm $lm: $lm_file is not there (stage 0 with --download fetches it)"
        asrkit decode --model "$tuned" --data "$data_dir" --lm "$lm_file" --tune-on dev-clean --sets "${sets[@]}"
    fi
    finish 5
fi

if begin 6 "word error rates" "$tuned/decode" "$tuned/results.txt, report.html"; then
    agree "$tuned" "${tune_settings[@]}"
    compgen -G "$tuned/decode/*/*/results.json" >/dev/null || die "$tuned/decode holds no results (run stage 5)"
    for result in "$tuned"/decode/*/*/results.json; do
        result=$(dirname "$result")
        printf '\n%s\n' "${result#"$tuned/decode/"}"
        asrkit score "$result/ref.trans.txt" "$result/hyp.trans.txt" --worst 0
    done
    printf '\n'
    asrkit results "$tuned/decode" --output "$tuned/results.txt"
    shown=("$tuned" ${refined:+"$refined"})
    if [ -z "$init" ] && [ -f "$pretrained/config.yaml" ]; then shown+=("$pretrained"); fi
    asrkit report "${shown[@]}" --output "$tuned/report.html"
    finish 6
fi
