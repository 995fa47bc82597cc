#!/usr/bin/env bash
# bash train.sh [--dry-run] TARGET ARGUMENT...
# `virtue train ARGUMENT...` as one of several processes, with the compiler flags of TARGET (`virtue flags`): v4, v5e, v5p,
# v6e, tpu7x or gpu. What every process of a launched run is. Flags that the environment has already come after, and win.
# The processes find each other by what the machine says (TPU VMs, GKE, SLURM), or by VIRTUE_COORDINATOR (HOST:PORT) and
# VIRTUE_PROCESSES where these are set; then a pod's number is its JOB_COMPLETION_INDEX.
set -euo pipefail
if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit $(($# == 0 ? 2 : 0))
fi
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/launcher.sh"
if [[ $1 == --dry-run ]]; then
    DRY_RUN=yes
    shift
fi
target=${1:-}
shift || refuse "no target; --help says what it takes"
flags=$(virtue flags "$target")
if [[ $target == gpu ]]; then
    flags="XLA_FLAGS=$flags ${XLA_FLAGS:-}"
else
    flags="LIBTPU_INIT_ARGS=$flags ${LIBTPU_INIT_ARGS:-}"
fi
joined=(--distributed)
if [[ -n ${VIRTUE_COORDINATOR:-} ]]; then
    joined=(--coordinator "$VIRTUE_COORDINATOR" "--processes=$VIRTUE_PROCESSES" "--process=$JOB_COMPLETION_INDEX")
fi
[[ ${DRY_RUN:-} == yes ]] || exec env "$flags" virtue train "${joined[@]}" "$@"
shown env "$flags" virtue train "${joined[@]}" "$@"
