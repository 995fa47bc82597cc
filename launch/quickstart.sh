#!/usr/bin/env bash
# Scenes -> training in two runs -> evaluation of a small VIRTUE on this machine's CPU, into WORK (default
# runs/quickstart). Run by `make quickstart`; running it again goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/quickstart}
export JAX_PLATFORMS=cpu

scenes() { # NAME, then what `virtue scenes` takes; a world of 8 kinds, 8 colours and 8 backgrounds
    local name=$1
    shift
    if ! compgen -G "$work/$name/*.parquet" > /dev/null; then
        virtue scenes --out "$work/$name" --width 96 96 --height 96 96 \
            --kinds 8 --colours 8 --textures 1 --backgrounds 8 --frame-relations "$@"
    fi
}

scenes scenes-one --seed 1 --train 1500 --eval 0 --objects 1 1
scenes scenes --seed 2 --train 1500 --eval 0 --objects 4 4
scenes scenes-eval --seed 3 --train 0 --eval 150 --objects 4 4

virtue train --config configs/quickstart.py:recognise --workdir "$work/recognise" --config.data.sources.scenes.path="$work/scenes-one"
virtue train --config configs/quickstart.py:point --workdir "$work/point" --config.data.sources.scenes.path="$work/scenes" \
    --config.model.directory="$work/recognise/model"
virtue eval --model "$work/point/model" --task scar --data "$work/scenes-eval" --workdir "$work" --image-rows 16
