#!/usr/bin/env bash
# bash launch/gke/run.sh --name NAME --tpu CHIP:SHAPE --image IMAGE --claim CLAIM [OPTION...] -- ARGUMENT of `virtue train`...
#
#   launch/gke/run.sh --name scar --tpu v6e:16x16 --slices 2 --image us-docker.pkg.dev/PROJECT/virtue/virtue_jax:1 --claim share \
#       -- --config configs/virtue_2b_scar.py:large --workdir /mnt/virtue/runs/scar --config.model.directory=/mnt/virtue/models/virtue-2b
#
# Fills launch/gke/jobset.yaml in and gives it to kubectl. JobSet starts the run again after preemptions, hangs and kills;
# not when `virtue train` cannot go on. Needs a cluster with the JobSet controller and a node pool for each slice.
#
#   --slices N       that many slices: sets config.mesh.slices (default 1)
#   --gpus KIND:G    GPU nodes in place of --tpu: the node label cloud.google.com/gke-accelerator and GPUs of each node,
#                    as nvidia-h100-80gb:8; with --nodes N (default 1)
#   --image IMAGE    made from launch/gke/Dockerfile
#   --claim CLAIM    PersistentVolumeClaim, ReadWriteMany, mounted at /mnt/virtue: weights, data, workdir
#   --chips-per-host N   of each TPU host (default 4, or the slice's where it has fewer)
#   --retries N      restarts, preemptions included (default 50)
#   --context NAME   of kubectl's configuration
#   --dry-run        print the command and the exact yaml; change nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/../launcher.sh"
# shellcheck source-path=SCRIPTDIR
source "$here/../tpu_kinds.sh"

name='' tpu='' gpus='' image='' claim='' slices=1 nodes=1 retries=50 chips_per_host='' kubectl=(kubectl)

option() {
    case $1 in
        --name) name=$2 ;;
        --tpu) tpu=$2 ;;
        --gpus) gpus=$2 ;;
        --image) image=$2 ;;
        --claim) claim=$2 ;;
        --context) kubectl+=("--context=$2") ;;
        --slices) whole_number "$1" "$2" 1 && slices=$2 ;;
        --nodes) whole_number "$1" "$2" 1 && nodes=$2 ;;
        --retries) whole_number "$1" "$2" 0 && retries=$2 ;;
        --chips-per-host) whole_number "$1" "$2" 1 && chips_per_host=$2 ;;
        *) refuse "$1: no such option; --help lists them" ;;
    esac
}

# Sets template, target, accelerator, hosts and chips_per_host.
check() {
    [[ $name =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] || refuse "--name '$name': expected a-z, 0-9 and -, from a letter on"
    [[ $claim =~ ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$ ]] || refuse "--claim '$claim': expected the name of a claim"
    [[ $image =~ ^[A-Za-z0-9][-A-Za-z0-9_./:@]*$ ]] || refuse "--image '$image': expected an image"
    shared_run "${arguments[@]}"
    if [[ -n $gpus ]]; then
        [[ -z $tpu ]] || refuse "--tpu and --gpus: choose one"
        [[ $gpus =~ ^([a-z0-9-]+):([1-9][0-9]?)$ ]] || refuse "--gpus $gpus: expected KIND:GPUS, as nvidia-h100-80gb:8"
        template=gpu_jobset.yaml target=gpu accelerator=${BASH_REMATCH[1]} shape='' hosts=$nodes
        chips_per_host=${BASH_REMATCH[2]}
        return
    fi
    tpu_kind "$tpu"
    template=jobset.yaml target=$chip accelerator=$(gke_label)
    : "${chips_per_host:=$((chips < 4 ? chips : 4))}"
    ((chips % chips_per_host == 0)) || refuse "--chips-per-host $chips_per_host does not divide the $chips chips of $tpu"
    hosts=$((chips / chips_per_host))
    over_slices
}

# list WORD...: a JSON list of strings, which is yaml as well.
list() {
    local word out=''
    for word in "$@"; do
        word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
        [[ $word != *[[:cntrl:]]* ]] || refuse "an argument of \`virtue train\` has a control character"
        # Kubernetes replaces $(NAME) in arguments; $$ is a $.
        out+=", \"${word//\$/\$\$}\""
    done
    echo "[${out#, }]"
}

# fill NAME VALUE: in text.
fill() { text=${text//"\${$1}"/"$2"}; }

rendered() {
    local text arguments_list final
    # The command was refused, or nothing was run: 126 and 127 are the shell's.
    final="$(exit_status FAILED), $(exit_status REFUSED), 126, 127"
    arguments_list=$(list "$target" "${arguments[@]}")
    text=$(< "$here/$template")
    fill NAME "$name"
    fill RETRIES "$retries"
    fill SLICES "$slices"
    fill HOSTS "$hosts"
    fill ACCELERATOR "$accelerator"
    fill SHAPE "$shape"
    fill IMAGE "$image"
    fill CHIPS_PER_HOST "$chips_per_host"
    fill CLAIM "$claim"
    fill ARGUMENTS "$arguments_list"
    fill FINAL "$final"
    printf '%s\n' "$text"
}

read_options "$@"
check
yaml=$(rendered)
if [[ ${DRY_RUN:-} == yes ]]; then
    shown "${kubectl[@]}" apply -f -
    printf '%s\n' "$yaml"
else
    "${kubectl[@]}" apply -f - <<< "$yaml"
    pods=("${kubectl[@]}" logs --follow --selector "jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0")
    say "what its first process says: $(shown "${pods[@]}")"
    say "how it stands: $(shown "${kubectl[@]}" get jobset "$name")"
    say "to end it: $(shown "${kubectl[@]}" delete jobset "$name")"
fi
