# shellcheck shell=bash
# What launchers have in common: how they speak, read options, and take the exit statuses of a run's processes. Sourced.

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || {
    echo "${0##*/}: bash $BASH_VERSION is too old; 4.4 or later is needed" >&2
    exit 2
}

# A command substitution ends, and its script with it, where something in it fails.
shopt -s inherit_errexit

# exit_status NAME: its number in virtue_jax/exit_status.py, which says what each means.
exit_status() {
    local number
    number=$(sed -n "s/^$1 = \([0-9]\{1,\}\).*/\1/p" "$(dirname "${BASH_SOURCE[0]}")/../virtue_jax/exit_status.py")
    printf '%s\n' "${number:?no exit status $1}"
}

say() { printf '[launch] %s\n' "$*" >&2; }

# refuse WORD...: one line, exit status 2.
refuse() {
    local line=$*
    printf '%s: %s\n' "${0##*/}" "${line//[[:cntrl:]]/ }" >&2
    exit 2
}

# shown COMMAND...: what any shell reads as this command.
shown() {
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+=" $word"
    done
    printf '%s\n' "${line# }"
}

# carry_out COMMAND...: runs it; where DRY_RUN is "yes", only shows it.
carry_out() {
    if [[ ${DRY_RUN:-} == yes ]]; then shown "$@"; else "$@"; fi
}

# verdict STATUS...: "finished", "again" or "stop STATUS". After those of `again` and after a kill (over 128) the same
# command goes on. A process that ended otherwise is why the others did.
verdict() {
    local status again what=finished
    again=" $(exit_status ANOTHER_ENDED) $(exit_status HUNG) $(exit_status SAVED) "
    for status in "$@"; do
        if [[ $again == *" $status "* ]] || ((status > 128)); then
            what=again
        elif ((status != 0)); then
            echo "stop $status"
            return
        fi
    done
    echo "$what"
}

# whole_number OPTION VALUE LEAST
whole_number() {
    if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)); then refuse "$1 $2: expected a whole number from $3"; fi
}

# given OPTION ARGUMENTS-LEFT: refuses an option without a value.
given() {
    (($2 > 1)) || refuse "$1: no value"
}

# The comment that a script opens with.
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[-1]}"; }

# switch OPTION: takes one that has no value; fails where there is none of this name. Scripts define their own.
switch() { return 1; }

# read_options ARGUMENT...: options up to --, each to the script's `switch`, or with its value to its `option`; sets
# arguments to those of `virtue train`.
read_options() {
    while (($#)) && [[ $1 != -- ]]; do
        case $1 in
            --dry-run) DRY_RUN=yes ;;
            -h | --help) usage && exit ;;
            --*)
                if ! switch "$1"; then
                    given "$1" "$#"
                    option "$1" "$2"
                    shift
                fi
                ;;
            *) refuse "$1: not understood; arguments of \`virtue train\` follow --" ;;
        esac
        shift
    done
    # shellcheck disable=SC2034 # read by the script
    arguments=("${@:2}")
}

# local_run ARGUMENT...: sets workdir from arguments of `virtue train`; refuses them without a run file, and without a
# workdir that is a folder's path.
local_run() {
    local argument previous='' config=''
    workdir=''
    for argument in "$@"; do
        [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}
        [[ $previous == --workdir ]] && workdir=$argument
        [[ $argument == --config || $argument == --config=?* ]] && config=yes
        previous=$argument
    done
    [[ -n $config ]] || refuse "no --config among the arguments of \`virtue train\`, which follow --"
    [[ -n $workdir ]] || refuse "no --workdir among the arguments of \`virtue train\`, which follow --"
    [[ $workdir != *://* ]] || refuse "--workdir $workdir: expected a folder on a file system that all processes mount"
}

# shared_run ARGUMENT...: the same, of hosts that have nothing but a mounted share in common.
shared_run() {
    local_run "$@"
    [[ $workdir == /* ]] || refuse "--workdir $workdir: expected the whole path of a folder that all hosts mount"
}
