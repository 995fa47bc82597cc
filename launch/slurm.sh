#!/usr/bin/env bash
# bash launch/slurm.sh --nodes N --gpus G [OPTION...] [--sbatch=ARGUMENT...] -- ARGUMENT of `virtue train`...
#
#   launch/slurm.sh --nodes 4 --gpus 8 --time 24:00:00 --sbatch=--partition=gpu \
#       -- --config configs/virtue_2b_scar.py --workdir /scratch/runs/scar --config.model.directory=/scratch/models/virtue-2b
#
# Submits launch/slurm.sbatch: one process per GPU, which find each other by SLURM's variables. The job is put back into
# the queue before its time is up, after hangs and kills, and by SLURM itself when it is preempted or loses a node; it
# goes on from its last checkpoint. Not when `virtue train` cannot go on, nor after scancel. `virtue` has to be on PATH.
#
#   --nodes N, --gpus G    nodes, and GPUs of each
#   --per-node             one process per node in place of one per GPU
#   --time LIMIT           of one start, as SLURM has it (default: the partition's)
#   --warning SECONDS      before the limit, to save in (default 300)
#   --retries N            requeues after hangs and kills (default 10)
#   --sbatch=ARGUMENT      a further argument of sbatch; may be repeated
#   --dry-run              print the command and the script; submit nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/launcher.sh"

nodes='' gpus='' per_node='' limit=() warning=300 retries=10 further=()

switch() {
    case $1 in
        --per-node) per_node=yes ;;
        --sbatch=*) further+=("${1#--sbatch=}") ;;
        *) return 1 ;;
    esac
}

option() {
    case $1 in
        --nodes) whole_number "$1" "$2" 1 && nodes=$((10#$2)) ;;
        --gpus) whole_number "$1" "$2" 1 && gpus=$((10#$2)) ;;
        --warning) whole_number "$1" "$2" 1 && warning=$2 ;;
        --retries) whole_number "$1" "$2" 0 && retries=$2 ;;
        --time) limit=("--time=$2") ;;
        *) refuse "$1: no such option; --help lists them" ;;
    esac
}

read_options "$@"
[[ -n $nodes && -n $gpus ]] || refuse "--nodes and --gpus are needed"
local_run "${arguments[@]}"
environment=("VIRTUE_LAUNCH=$here" "VIRTUE_RETRIES=$retries")
if [[ -n $per_node ]]; then
    # By itself JAX gives a process of SLURM one GPU.
    environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))")
    tasks=1
else
    tasks=$gpus
fi
# All GPUs of a node are visible to all its processes, each of which takes the one of its local number.
carry_out env "${environment[@]}" sbatch --export=ALL --job-name=virtue "--nodes=$nodes" "--ntasks-per-node=$tasks" \
    "--gpus-per-node=$gpus" "${limit[@]}" "--signal=B:USR1@$warning" --requeue --open-mode=append \
    --output=virtue-%j.txt "${further[@]}" "$here/slurm.sbatch" "${arguments[@]}"
[[ ${DRY_RUN:-} != yes ]] || cat "$here/slurm.sbatch"
