# bash completion for bgtaskctl                            -*- shell-script -*-
# SPDX-License-Identifier: LGPL-2.1-or-later

_bgtaskctl_ids() {
    bgtaskctl list --no-legend --no-pager "$@" 2>/dev/null | while read -r id _; do echo "$id"; done
}

_bgtaskctl_queues() {
    bgtaskctl queues --no-legend --no-pager 2>/dev/null | while read -r queue _; do echo "$queue"; done
}

_bgtaskctl_workers() {
    bgtaskctl workers --no-legend --no-pager 2>/dev/null | while read -r name _; do echo "$name"; done
}

_bgtaskctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb= word
    local verbs='run http list status show output logs wait stop kill pause resume edit retry rm send stats clean signal signals
        config update record schedule queues call workers monitor reload check-config'
    COMPREPLY=()
    local i skip=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        [[ $skip ]] && { skip=; continue; }
        case $word in
            --)
                # The command's own completion: after -- its words begin.
                if [[ $verb == run ]]; then
                    if declare -F _command_offset >/dev/null; then
                        _command_offset $((i + 1))
                    elif ((i + 1 == COMP_CWORD)); then
                        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
                    else
                        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
                    fi
                    return
                fi ;;
            --socket) skip=1 ;;
            -*) ;;
            *) [[ -z $verb ]] && verb=$word ;;
        esac
    done
    case $prev in
        --queue) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_queues)" -- "$cur"); return ;;
        --kill-whom) mapfile -t COMPREPLY < <(compgen -W 'all main' -- "$cur"); return ;;
        --retry-on) mapfile -t COMPREPLY < <(compgen -W 'exit-code signal core-dump timeout watchdog oom-kill resources interrupted lost' -- "$cur"); return ;;
        --config|--conf-d|--socket) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        --state) mapfile -t COMPREPLY < <(compgen -W 'delayed queued running paused finished failed stopped' -- "$cur"); return ;;
        --user) mapfile -t COMPREPLY < <(compgen -u -- "$cur"); return ;;
        -s|--signal) mapfile -t COMPREPLY < <(compgen -A signal -- "$cur"); return ;;
        -o|--output) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$cur"); return ;;
        -d|--cwd) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
        -p|--property) [[ $verb == run ]] && mapfile -t COMPREPLY < <(compgen -S = -W 'MemoryMax MemoryHigh MemorySwapMax CPUQuota CPUWeight TasksMax IOWeight RuntimeMaxSec LimitNOFILE UMask Nice OOMScoreAdjust' -- "$cur"); return ;;
    esac
    if [[ -z $verb ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$verbs --help --version --socket" -- "$cur")
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(bgtaskctl "$verb" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]+')" -- "$cur")
    else
        case $verb in
            stop|kill|wait|signal|send|edit) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state queued,delayed,running,paused)" -- "$cur") ;;
            pause) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state running)" -- "$cur") ;;
            resume) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state paused)" -- "$cur") ;;
            retry|rm) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state finished,failed,stopped -n 200)" -- "$cur") ;;
            status|show|output|logs|signals|config) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids -n 200 --all)" -- "$cur") ;;
            record)
                if [[ $prev == record ]]; then
                    mapfile -t COMPREPLY < <(compgen -W 'add started finished failed stopped' -- "$cur")
                else
                    mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state queued,running)" -- "$cur")
                fi ;;
            call|workers) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_workers | sort -u)" -- "$cur") ;;
            queues)
                if [[ $prev == queues ]]; then
                    mapfile -t COMPREPLY < <(compgen -W 'list pause resume' -- "$cur")
                else
                    mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_queues)" -- "$cur")
                fi ;;
        esac
    fi
}

complete -F _bgtaskctl bgtaskctl
