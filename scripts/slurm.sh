#!/usr/bin/env bash
# Trains under Slurm, on any number of nodes, for longer than a job may last: before the time is over (or when Slurm wants the nodes
# back) the run saves, leaves, and is queued again; a process that dies is started again by torchrun.
#
#   bash scripts/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 -- conf/librispeech/pretrain_large.yaml exp_dir=exp/large training.shard=true
#   bash scripts/slurm.sh --nodes 1 --gpus 4 --sbatch --partition=gpu --sbatch --account=speech -- CONFIG.yaml KEY=VALUE …
#
#   --nodes N        nodes (1)
#   --gpus N         GPUs of each node, with a process for each (1); 0 trains on CPUs
#   --processes N    processes of each node (as many as GPUs, 1 without any)
#   --cpus N         cores of each process (8)
#   --time LIMIT     the longest that one job may last, in Slurm's words (24:00:00)
#   --notice SECONDS how long before the limit the run is told to save (300)
#   --restarts N     times that torchrun starts processes again within a job (3)
#   --name NAME      the job's name (asrkit)
#   --log-dir DIR    where the jobs' output goes (.)
#   --sbatch OPTION  a further option for sbatch; may be given again
#   --print          show the sbatch command instead of running it
#
# Run it from where paths in the command mean what they should, with the environment active that has asrkit (. scripts/env.sh). The
# experiment's folder must be on a file system that all nodes share.
set -euo pipefail

fail() {
    echo "slurm.sh: $1" >&2
    exit 2
}

# The job itself: sbatch runs this script again on the first node.
if [[ ${1:-} == --job ]]; then
    processes=$2 restarts=$3
    shift 3
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    launch=(bash -c 'trap "" USR1; exec "$@"' asrkit python -m torch.distributed.run
        --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$processes" --max-restarts "$restarts"
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
        --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))"
        --module asrkit train "$@")
    told=0
    trap 'told=1' USR1
    ended=$(mktemp)
    # The signal goes to every process of the step. Whoever does not know it is to ignore it, torchrun above all.
    (
        trap '' USR1
        srun --kill-on-bad-exit=1 "${launch[@]}" && echo 0 >"$ended" || echo $? >"$ended"
    ) &
    step=$!
    while kill -0 "$step" 2>/dev/null; do
        wait "$step" || true # a signal ends the wait early
        # Again and again: a run that is only just starting does not listen yet.
        if ((told)) && kill -0 "$step" 2>/dev/null; then
            scancel --signal=USR1 "$SLURM_JOB_ID.0" || true
            sleep "${ASRKIT_SLURM_PAUSE:-15}"
        fi
    done
    status=$(cat "$ended")
    rm -f "$ended"
    if ((told)) && ((status == 0)); then
        echo "slurm.sh: saved; job $SLURM_JOB_ID is queued again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
fi

nodes=1 gpus=1 processes="" cpus=8 limit=24:00:00 notice=300 restarts=3 name=asrkit logs=. more=() show=0
while (($#)); do
    case $1 in
    --print) show=1 && shift && continue ;;
    --) shift && break ;;
    --help | -h) sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' && exit 0 ;;
    esac
    (($# > 1)) || fail "$1 needs a value (see --help)"
    case $1 in
    --nodes) nodes=$2 ;;
    --gpus) gpus=$2 ;;
    --processes) processes=$2 ;;
    --cpus) cpus=$2 ;;
    --time) limit=$2 ;;
    --notice) notice=$2 ;;
    --restarts) restarts=$2 ;;
    --name) name=$2 ;;
    --log-dir) logs=$2 ;;
    --sbatch) more+=("$2") ;;
    *) fail "unknown option $1; what goes to asrkit train stands behind -- (see --help)" ;;
    esac
    shift 2
done
for value in "$nodes" "$gpus" "${processes:-1}" "$cpus" "$notice" "$restarts"; do
    [[ $value =~ ^[0-9]+$ ]] || fail "'$value' is not a whole number"
done
(($#)) || fail "no CONFIG.yaml behind -- (see --help)"
[[ -f $1 ]] || fail "no such config: $1"
processes=${processes:-$((gpus > 0 ? gpus : 1))}
command=(sbatch --job-name "$name" --nodes "$nodes" --ntasks-per-node 1 --cpus-per-task $((cpus * processes)) --time "$limit"
    --signal "B:USR1@$notice" --requeue --open-mode append --output "$logs/$name-%j.log")
((gpus == 0)) || command+=(--gpus-per-node "$gpus")
command+=("${more[@]}" "$(realpath "${BASH_SOURCE[0]}")" --job "$processes" "$restarts" "$@")
if ((show)); then
    printf '%q ' "${command[@]}"
    echo
else
    mkdir -p "$logs"
    exec "${command[@]}"
fi
