#!/usr/bin/env bash
# Scenes -> training -> evaluation of a small VIRTUE on this machine's CPU. Run by `make quickstart`; running it again
# goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/quickstart}
export JAX_PLATFORMS=cpu

if [[ ! -f $work/scenes/SCaR_train_scenes.parquet ]]; then
    virtue scenes --out "$work/scenes" --train 3000 --eval 100 --seed 0 \
        --width 96 96 --height 96 96 --objects 4 4 --kinds 8 --colours 8 --textures 1 --backgrounds 8
fi
virtue train --config configs/quickstart.py --workdir "$work" --config.data.path="$work/scenes"
virtue eval --model "$work/model" --task scar --data "$work/scenes" --workdir "$work"
