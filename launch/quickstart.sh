#!/usr/bin/env bash
# Scenes -> training in two runs -> evaluation of a small VIRTUE on this machine's CPU, into WORK (default
# runs/quickstart). Run by `make quickstart`; running it again goes on where it stopped.
#   bash launch/quickstart.sh [--dry-run] [WORK]        --dry-run: print the commands
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit
fi
cd "$(dirname "$0")/.."
dry_run=''
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
work=${1:-runs/quickstart}
export JAX_PLATFORMS=cpu

carry_out() { # for any bash, and so without launcher.sh
    if [[ -z $dry_run ]]; then "$@"; else printf '%q ' "$@" && echo; fi
}

scenes() { # NAME, then what `virtue scenes` takes; a world of 8 kinds, 8 colours and 8 backgrounds
    local name=$1
    shift
    if ! compgen -G "$work/$name/*.parquet" > /dev/null; then
        carry_out virtue scenes --out "$work/$name" --width 96 96 --height 96 96 \
            --kinds 8 --colours 8 --textures 1 --backgrounds 8 --frame-relations "$@"
    fi
}

scenes scenes-one --seed 1 --train 1500 --eval 0 --objects 1 1
scenes scenes --seed 2 --train 1500 --eval 0 --objects 4 4
scenes scenes-eval --seed 3 --train 0 --eval 150 --objects 4 4

carry_out virtue train --config configs/quickstart.py:recognise --workdir "$work/recognise" --config.data.sources.scenes.path="$work/scenes-one"
carry_out virtue train --config configs/quickstart.py:point --workdir "$work/point" --config.data.sources.scenes.path="$work/scenes" \
    --config.model.directory="$work/recognise/model"
carry_out virtue eval --model "$work/point/model" --task scar --data "$work/scenes-eval" --workdir "$work"
