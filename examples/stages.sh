# Sourced by the examples' run.sh: what their command lines and stages have in common. They set root, stage, stop_stage and overrides.

at_work="" # the stage that is running
die() {
    at_work=""
    echo "run.sh: $*" >&2
    exit 2
}
# Says how to go on when a stage has ended early. asrkit returns 2 for a mistake that it has told in one line already, and 130
# when it was interrupted and has saved its state. A signal that ends this shell alone (kill, a scheduler's SIGTERM) is passed on to
# the stage, and what it saves is waited for.
ended() {
    local status=$1 children=()
    read -ra children 2>/dev/null <"/proc/$$/task/$$/children" || true
    if [ ${#children[@]} -gt 0 ]; then
        kill -TERM "${children[@]}" 2>/dev/null || true
        wait "${children[@]}" || status=$?
    fi
    [ -n "$at_work" ] && [ "$status" -ne 0 ] || return 0
    case $status in
    2) ;;
    130) echo "run.sh: interrupted in stage $at_work; the same command goes on from there" >&2 ;;
    137) echo "run.sh: stage $at_work was killed, perhaps for want of memory; the same command goes on from there" >&2 ;;
    *) echo "run.sh: stage $at_work failed, see above; once that is mended, the same command goes on from there" >&2 ;;
    esac
}
trap 'ended $?' EXIT
trap 'exit 130' INT

# one_of FLAG VALUE ALLOWED…
one_of() {
    local flag=$1 value=$2
    shift 2
    case " $* " in *" $value "*) ;; *) die "$flag $value: not one of $*" ;; esac
}
# whole_number NAME… stops where a flag's variable holds anything else.
whole_number() {
    local flag
    for flag in "$@"; do
        case ${!flag} in "" | *[!0-9]*) die "--${flag/_/-} ${!flag}: not a whole number" ;; esac
    done
}
# The stages that are wanted are stages, in order.
check_stages() {
    one_of --stage "$stage" 0 1 2 3 4 5 6
    one_of --stop-stage "$stop_stage" 0 1 2 3 4 5 6
    [ "$stage" -le "$stop_stage" ] || die "--stage $stage comes after --stop-stage $stop_stage"
}
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

# A mistake behind -- is told before the first stage, not after days in its own: to_check STAGE CONFIG for each, then check_settings.
# `overrides_for STAGE` is the script's own.
checked=()
to_check() {
    local changes
    mapfile -t changes < <(overrides_for "$1")
    checked+=(-- "$2" "${changes[@]}")
}
check_settings() {
    [ ${#overrides[@]} -gt 0 ] || return 0
    installed
    python "$root/examples/check.py" "${checked[@]:1}"
}
