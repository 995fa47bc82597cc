#!/usr/bin/env bash
# bash launch/tpu_pod.sh --name NAME --zone ZONE --tpu CHIP:SHAPE [OPTION...] -- ARGUMENT of `virtue train`...
#
#   launch/tpu_pod.sh --name scar --zone us-west4-a --tpu v5e:16x16 --spot --nfs 10.0.0.2:/share \
#       -- --config configs/virtue_2b_scar.py:large --workdir /mnt/virtue/runs/scar --config.model.directory=/mnt/virtue/models/virtue-2b
#
# Asks for TPU VMs as a queued resource, waits for them, installs this work tree's last commit on all of them, starts
# `virtue train --distributed` on every worker, shows what worker 0 says, and starts it again after preemptions, hangs
# and kills: it goes on from its last checkpoint. The TPU VMs are deleted at the end. This script may be interrupted (the run
# goes on) and started again with the same options (it finds the run). Exit status: 0 finished, else that of `virtue train`.
#
#   --slices N          that many slices, connected by the data-centre network: sets config.mesh.slices (default 1)
#   --project PROJECT   default: that of gcloud's configuration
#   --spot              preemptible, cheap; --reserved: from a reservation of the project; --reservation URL: from this one
#   --runtime VERSION   image of the VMs (default: the one that Cloud TPU names for the chip)
#   --nfs HOST:/EXPORT  mount this share (Filestore, for one) at /mnt/virtue on all workers
#   --setup COMMAND     run this on all workers after the installation
#   --create ARGUMENT   a further argument of `gcloud compute tpus queued-resources create`, as --internal-ips; may be repeated
#   --ssh ARGUMENT      a further argument of its ssh and scp, as --tunnel-through-iap; may be repeated
#   --retries N         starts after failures and preemptions; 10 minutes of life reset the count (default 10)
#   --poll SECONDS      between two looks at the pod (default 30)
#   --keep              do not delete the VMs at the end
#   --delete            delete the VMs of --name, and nothing else
#   --dry-run           print the commands in their order; change nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
source "$here/launcher.sh"
# shellcheck source-path=SCRIPTDIR
source "$here/tpu_kinds.sh"

HEALTHY=600 # seconds after which a start has proved itself
DEAF=10     # looks at the pod without an answer, after which it is lost
worker=(bash virtue_jax/launch/on_worker.sh)
follower=''
scratch=$(mktemp -d)
trap 'stop_following; rm -rf "$scratch"' EXIT

name='' zone='' tpu='' slices=1 retries=10 poll=30 runtime_given='' nfs='' setup='' keep='' delete=''
where=() capacity=() further=() reach=(--quiet) gcloud=(gcloud compute tpus queued-resources)
creator=("${gcloud[@]}")

switch() {
    case $1 in
        --spot | --reserved) capacity+=("$1") ;;
        --keep) keep=yes ;;
        --delete) delete=yes ;;
        *) return 1 ;;
    esac
}

option() {
    case $1 in
        --name) name=$2 ;;
        --zone) zone=$2 ;;
        --tpu) tpu=$2 ;;
        --slices) whole_number "$1" "$2" 1 && slices=$((10#$2)) ;;
        --retries) whole_number "$1" "$2" 0 && retries=$((10#$2)) ;;
        --poll) whole_number "$1" "$2" 0 && poll=$2 ;;
        --project) where+=("--project=$2") ;;
        --runtime) runtime_given=$2 ;;
        --nfs) nfs=$2 ;;
        --setup) setup=$2 ;;
        --create) further+=("$2") ;;
        --ssh) reach+=("$2") ;;
        --reservation) capacity+=("--reservation=$2") && creator=(gcloud alpha compute tpus queued-resources) ;;
        *) refuse "$1: no such option; --help lists them" ;;
    esac
}

check() {
    [[ $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] || refuse "--name '$name': expected a-z, 0-9 and -, from a letter on"
    [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || refuse "--zone '$zone': expected a zone, as us-west4-a"
    where+=("--zone=$zone")
    [[ -z $delete ]] || return 0
    tpu_kind "$tpu"
    queued_type
    runtime=${runtime_given:-$runtime}
    ((${#capacity[@]} < 2)) || refuse "${capacity[*]}: choose one"
    [[ -z $nfs || $nfs == *:/* ]] || refuse "--nfs $nfs: expected HOST:/EXPORT"
    shared_run "${arguments[@]}"
    over_slices
}

create() {
    local nodes=("--node-id=$name")
    ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
    carry_out "${creator[@]}" create "$name" "${where[@]}" "${nodes[@]}" "${type[@]}" \
        "--runtime-version=$runtime" "${capacity[@]}" "${further[@]}"
}

# Its state; NONE where there is none, UNKNOWN where gcloud cannot say.
state() {
    local describe=("${gcloud[@]}" describe "$name" "${where[@]}" '--format=value(state.state)')
    if [[ ${DRY_RUN:-} == yes ]]; then
        shown "${describe[@]}"
    elif "${describe[@]}" 2> "$scratch/refusal"; then
        :
    elif grep -q NOT_FOUND "$scratch/refusal"; then
        echo NONE
    else
        cat "$scratch/refusal" >&2
        echo UNKNOWN
    fi
}

remove() { carry_out "${gcloud[@]}" delete "$name" "${where[@]}" --force --quiet; }

# Returns when the VMs are there. Asks for them where they are not.
acquire() {
    local now before='' deaf=0
    while :; do
        now=$(state)
        [[ $now == "$before" ]] || say "$name: $now"
        before=$now
        [[ $now == UNKNOWN ]] || deaf=0
        case $now in
            ACTIVE) return ;;
            NONE) create ;;
            FAILED) spend "$now" && remove ;;
            SUSPENDED) remove ;;
            UNKNOWN) ((++deaf < DEAF)) || leave 2 "gcloud does not say how $name is" ;;
        esac
        sleep "$poll"
    done
}

# on_workers WORD...: runs this on all workers of all slices.
on_workers() {
    carry_out "${gcloud[@]}" ssh "$name" "${where[@]}" "${reach[@]}" --node=all --worker=all "--command=$(shown "$@")"
}

# Under `set_up`, where a command that fails ends nothing by itself.
install() {
    local tree=$here/.. archive=$scratch/virtue_jax.tar.gz
    if [[ ! -f $archive ]]; then # once: a run goes on with the code that it began with
        git -C "$tree" diff --quiet HEAD || say "the work tree differs from its last commit, which is what is installed"
        carry_out git -C "$tree" archive --format=tar.gz "--output=$archive" HEAD || return
    fi
    carry_out "${gcloud[@]}" scp "$archive" "$name:" "${where[@]}" "${reach[@]}" --node=all --worker=all || return
    on_workers bash -c 'rm -rf virtue_jax && mkdir virtue_jax && tar -xzf virtue_jax.tar.gz -C virtue_jax' || return
    on_workers "${worker[@]}" install || return
    [[ -z $nfs ]] || on_workers "${worker[@]}" mount "$nfs" || return
    [[ -z $setup ]] || on_workers bash -c "$setup" || return
    installed=yes
}

start() { on_workers "${worker[@]}" start "$chip" "${arguments[@]}"; }

follow() {
    local command=("${gcloud[@]}" ssh "$name" "${where[@]}" "${reach[@]}" --node=0 --worker=0)
    command+=("--command=$(shown "${worker[@]}" log)")
    if [[ ${DRY_RUN:-} == yes ]]; then
        shown "${command[@]}"
    elif [[ -z $follower ]] || ! kill -0 "$follower" 2> /dev/null; then
        set -m # a process group of its own: gcloud is ended with the ssh that it runs
        "${command[@]}" < /dev/null &
        follower=$!
        set +m
    fi
}

stop_following() {
    [[ -z $follower ]] || kill -- "-$follower" 2> /dev/null || true
    follower=''
}

# Sets statuses: one word for every worker. Fails where not all could be asked.
ask() {
    local said
    said=$(on_workers "${worker[@]}" status 2> "$scratch/refusal") || return 1
    mapfile -t statuses < <(sed -n 's/.*virtue-status \([a-z0-9]*\).*/\1/p' <<< "$said")
    ((${#statuses[@]}))
}

# Sets outcome: finished, again, stop STATUS, or lost.
watch_run() {
    local deaf=0
    while :; do
        sleep "$poll"
        case $(state) in
            ACTIVE) ;;
            UNKNOWN) continue ;; # it is we who cannot be heard
            *) installed='' outcome=lost && return ;;
        esac
        if ! ask; then
            if ((++deaf == DEAF)); then
                say "its workers do not answer"
                remove
                installed='' outcome=lost && return
            fi
            continue
        fi
        deaf=0
        follow
        if [[ " ${statuses[*]} " != *" running "* ]]; then
            outcome=$(verdict "${statuses[@]//none/137}")
            return
        fi
        # One that has failed takes the others along, sooner or later: sooner.
        [[ "$(verdict "${statuses[@]//running/0}")" == finished ]] || on_workers "${worker[@]}" stop || true
    done
}

spend() {
    ((retries_left-- > 0)) || give_up "$(exit_status SAVED)" "$1, and $retries retries are used up"
    say "$1: starting again ($retries_left more after this)"
}

# leave STATUS WORD...: what nobody has seen is not deleted: the run may be well, and it is we who cannot be heard.
leave() {
    say "${@:2}"
    say "if it is there it stays, and costs: the same command goes on with it, --delete deletes it"
    stop_following
    exit "$1"
}

# give_up STATUS WORD...: the VMs are deleted, unless they are to be kept.
give_up() {
    say "${@:2}"
    stop_following
    if [[ -n $keep ]]; then say "$name is kept: --delete deletes it"; else remove || true; fi
    exit "$1"
}

set_up() { [[ -n $installed ]] || install && start; }

supervise() {
    local begin=0
    installed=''
    retries_left=$retries
    while :; do
        acquire
        if ! ask || [[ " ${statuses[*]} " != *" running "* ]]; then
            # A worker that cannot be reached may be going away: asked again whether the pod is there.
            if ! set_up; then
                installed=''
                spend "$name could not be set up"
                sleep "$poll"
                continue
            fi
        fi
        begin=$SECONDS
        follow
        watch_run
        stop_following
        ((SECONDS - begin < HEALTHY)) || retries_left=$retries
        case $outcome in
            finished) give_up 0 "finished" ;;
            stop*)
                on_workers "${worker[@]}" last || true
                give_up "${outcome#stop }" "cannot go on: a worker ended with ${outcome#stop }; its last lines are above"
                ;;
            *) spend "the run was interrupted ($outcome)" ;;
        esac
    done
}

# The same commands, each once.
plan() {
    create
    state
    install
    start
    follow
    on_workers "${worker[@]}" status
    [[ -n $keep ]] || remove
}

read_options "$@"
check
if [[ -n $delete ]]; then
    remove
elif [[ ${DRY_RUN:-} == yes ]]; then
    plan
else
    supervise
fi
