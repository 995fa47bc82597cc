#!/usr/bin/env bash
# bash launch/gke/xpk.sh --name NAME --cluster CLUSTER --tpu CHIP:SHAPE --image IMAGE [OPTION...] -- ARGUMENT of `virtue train`...
#
# A run on a cluster that XPK made (`xpk cluster create`), as a workload of it: XPK queues it, and starts it again after
# preemptions, hangs and kills, not when `virtue train` cannot go on.
#
#   --slices N         that many slices: sets config.mesh.slices (default 1)
#   --project, --zone  default: those of gcloud's configuration
#   --storage NAME     a storage of the cluster (`xpk storage attach`), which mounts it where it was told; may be repeated
#   --priority LEVEL   very-low, low, medium, high, very-high
#   --retries N        restarts, preemptions included (default 50)
#   --dry-run          print the command; change nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/../launcher.sh"
# shellcheck source-path=SCRIPTDIR
source "$here/../tpu_kinds.sh"

name='' cluster='' tpu='' image='' slices=1 retries=50 options=()

option() {
    case $1 in
        --name) name=$2 ;;
        --cluster) cluster=$2 ;;
        --tpu) tpu=$2 ;;
        --image) image=$2 ;;
        --slices) whole_number "$1" "$2" 1 && slices=$2 ;;
        --retries) whole_number "$1" "$2" 0 && retries=$2 ;;
        --project | --zone | --storage | --priority) options+=("$1=$2") ;;
        *) refuse "$1: no such option; --help lists them" ;;
    esac
}

# XPK names flat slices by their chips, of which there is one shape each, and the others by their shape.
device() {
    case $chip in
        v5e) echo "v5litepod-$chips" ;;
        v6e) echo "v6e-$chips" ;;
        *) echo "$chip-$shape" ;;
    esac
}

read_options "$@"
[[ $name =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] || refuse "--name '$name': expected a-z, 0-9 and -, from a letter on"
[[ -n $cluster ]] || refuse "no --cluster"
[[ -n $image ]] || refuse "no --image: one made from launch/gke/Dockerfile"
tpu_kind "$tpu"
shared_run "${arguments[@]}"
over_slices
# By itself XPK starts again after 42 and 127 to 255.
again=$(exit_status ANOTHER_ENDED),$(exit_status HUNG),$(exit_status SAVED)
carry_out xpk workload create "--workload=$name" "--cluster=$cluster" "--tpu-type=$(device)" "--num-slices=$slices" \
    "--docker-image=$image" "--max-restarts=$retries" "--restart-on-exit-codes=$again" \
    --termination-grace-period-seconds=120 "${options[@]}" \
    "--command=$(shown bash /virtue_jax/launch/train.sh "$chip" "${arguments[@]}")"
