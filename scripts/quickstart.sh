#!/usr/bin/env bash
# From nothing to a word error rate in minutes, on two CPU cores: environment, a synthetic corpus, self-supervised
# pre-training, CTC fine-tuning, decoding, scoring. Running it again goes on where it stopped.
#
#   bash scripts/quickstart.sh                  everything goes to exp/quickstart
#   bash scripts/quickstart.sh --from-scratch   the control: CTC on the same labels without pre-training, as much audio in all
#   bash scripts/quickstart.sh --dir DIR        another folder for corpus, models and results
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

dir="$root/exp/quickstart"
init=()
while [ $# -gt 0 ]; do
    case $1 in
    --from-scratch) init=(--init scratch) ;;
    --dir)
        [ $# -gt 1 ] || { echo "quickstart.sh: --dir needs a folder" >&2 && exit 2; }
        dir=$2
        shift
        ;;
    -h | --help)
        sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    *)
        echo "quickstart.sh: unknown argument '$1' (known: --from-scratch, --dir DIR, --help)" >&2
        exit 2
        ;;
    esac
    shift
done

SECONDS=0
. "$root/scripts/env.sh"
printf 'Environment ready after %d s.\n' "$SECONDS"
# A signal that ends this shell alone is passed on to the recipe, which saves its state.
ended() {
    local children=()
    read -ra children 2>/dev/null <"/proc/$$/task/$$/children" || true
    [ ${#children[@]} -eq 0 ] || { kill -TERM "${children[@]}" && wait "${children[@]}"; }
}
trap ended EXIT
bash "$root/examples/librispeech/run.sh" --corpus mini --config mini --size mini --method finetune --subset 10h \
    --corpus-dir "$dir/corpus" --data-dir "$dir/data" --exp-dir "$dir" "${init[@]}"
printf '\nTotal: %d min %02d s, everything included. Corpus, models and results: %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$dir"
