# shellcheck shell=bash disable=SC2034,SC2154
# What Google Cloud calls the TPUs that `virtue compile --topology CHIP:SHAPE` names. Sourced after launcher.sh.

flat_slices='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16' # of v5e and v6e

# tpu_kind CHIP:SHAPE: sets chip, shape, chips (in a slice) and hosts (of four chips each).
tpu_kind() {
    chip=${1%%:*} shape=${1#*:}
    [[ $1 == *:* && $shape =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || refuse "--tpu $1: expected CHIP:SHAPE, as v5e:16x16"
    local sides=${shape//[^x]/} wanted
    case $chip in
        v5e | v6e) wanted=x ;;
        v4 | v5p | tpu7x) wanted=xx ;;
        *) refuse "--tpu $1: no chip $chip; there are v4, v5e, v5p, v6e, tpu7x" ;;
    esac
    [[ $sides == "$wanted" ]] || refuse "--tpu $1: slices of $chip have $((${#wanted} + 1)) sides"
    [[ $wanted == xx || " $flat_slices " == *" $shape "* ]] || refuse "--tpu $1: slices of $chip are $flat_slices"
    chips=$((${shape//x/*}))
    hosts=$((chips > 4 ? chips / 4 : 1))
}

# queued_type: sets type, the arguments of `gcloud ... create` for chip and shape, and runtime, the VM's image.
# Flat slices have one shape for each size; the others are asked for by shape.
queued_type() {
    case $chip in
        v4) type=(--type=v4 "--topology=$shape") runtime=tpu-ubuntu2204-base ;;
        v5p) type=(--type=v5p "--topology=$shape") runtime=v2-alpha-tpuv5 ;;
        v5e) type=("--accelerator-type=v5litepod-$chips") runtime=v2-alpha-tpuv5-lite ;;
        v6e) type=("--accelerator-type=v6e-$chips") runtime=v2-alpha-tpuv6e ;;
        *) refuse "--tpu $chip: Cloud TPU has no VMs of it; use launch/gke" ;;
    esac
}

# gke_label: the node label cloud.google.com/gke-tpu-accelerator of the chip.
gke_label() {
    case $chip in
        v4) echo tpu-v4-podslice ;;
        v5e) echo tpu-v5-lite-podslice ;;
        v5p) echo tpu-v5p-slice ;;
        v6e) echo tpu-v6e-slice ;;
        tpu7x) echo tpu7x ;;
    esac
}

# over_slices: adds to arguments what makes `virtue train` lay its mesh over the slices, unless it is there.
over_slices() {
    [[ $slices != 1 && " ${arguments[*]}" != *" --config.mesh.slices="* ]] || return 0
    arguments+=("--config.mesh.slices=$slices")
}
