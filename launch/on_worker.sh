#!/usr/bin/env bash
# bash on_worker.sh COMMAND: one VM's side of a run; launch/tpu_pod.sh calls it on all VMs.
#   install             Python 3.11, the package and its TPU extra in ~/virtue_env
#   mount HOST:/EXPORT  an NFS share at /mnt/virtue
#   start CHIP ARG...   launch/train.sh CHIP ARG... in the background, unless it is running; it says into ~/virtue_run/log
#   status              "virtue-status S": running, none (never started) or the exit status
#   stop                ends it: SIGTERM, and after a minute SIGKILL
#   log                 what it said last and says from now on
#   last                its last lines
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$HOME/virtue_env
run=$HOME/virtue_run
mkdir -p "$run"

install() {
    # The images' Python is older than the package's. 3.11 is the version that its tests run on.
    if [[ ! -x $environment/bin/python ]]; then
        if command -v python3.11 > /dev/null; then
            python3.11 -m venv "$environment"
        else
            python3 -m pip install --quiet --user uv
            python3 -m uv venv --quiet --seed --python 3.11 "$environment"
        fi
    fi
    "$environment/bin/python" -m pip install --quiet -e "${tree}[tpu]"
}

mount_share() {
    mountpoint -q /mnt/virtue && return
    command -v mount.nfs > /dev/null || sudo apt-get install -y -q nfs-common
    sudo mkdir -p /mnt/virtue
    # A file that one host has made is seen by the others at once: what is absent is never taken from a cache.
    sudo mount -t nfs -o rw,hard,lookupcache=positive "$1" /mnt/virtue
}

start() {
    if [[ $(status) == running ]]; then
        echo "running already"
        return
    fi
    rm -f "$run/status"
    setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" >> "$run/log" 2>&1 < /dev/null &
    echo $! > "$run/supervisor"
}

# Runs it to its end and keeps its status; what `start` leaves behind.
supervise() {
    local status=0
    cd "$tree" # where run files are named from
    PATH="$environment/bin:$PATH" bash "$tree/launch/train.sh" "$@" &
    echo $! > "$run/process"
    wait $! || status=$?
    echo "$status" > "$run/status.new"
    mv "$run/status.new" "$run/status"
}

status() {
    if [[ -f $run/status ]]; then
        cat "$run/status"
    elif [[ ! -f $run/supervisor ]]; then
        echo none
    elif grep -qs on_worker.sh "/proc/$(< "$run/supervisor")/cmdline"; then
        echo running
    else
        echo 137 # the VM was restarted under it
    fi
}

stop() {
    [[ $(status) == running ]] || return 0
    kill -TERM "$(< "$run/process")" 2> /dev/null || true
    for ((waited = 0; waited < 60; waited++)); do
        [[ $(status) == running ]] || return 0
        sleep 1
    done
    kill -KILL "$(< "$run/process")" 2> /dev/null || true
}

command=${1:-}
shift || true
case $command in
    install | start | supervise | stop) "$command" "$@" ;;
    mount) mount_share "$@" ;;
    status) echo "virtue-status $(status)" ;;
    log)
        touch "$run/log"
        exec tail -n 20 -F "$run/log"
        ;;
    last) tail -n 40 "$run/log" | sed "s/^/$(hostname): /" ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" ;;
    *)
        echo "on_worker.sh: no command '$command'; --help lists them" >&2
        exit 2
        ;;
esac
