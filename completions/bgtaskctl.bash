# bash completion for bgtaskctl                            -*- shell-script -*-
# SPDX-License-Identifier: LGPL-2.1-or-later

_bgtaskctl_ids() {
    bgtaskctl list --no-legend --no-pager "$@" 2>/dev/null | while read -r id _; do echo "$id"; done
}

_bgtaskctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb= word
    local verbs='run list status show output logs wait stop kill pause resume retry rm signal signals
        config update queues monitor check-config'
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $word in
            --) [[ $verb == run ]] && { _command_offset "$COMP_CWORD" 2>/dev/null; return; } ;;
            -*) ;;
            *) [[ -z $verb ]] && verb=$word ;;
        esac
    done
    case $prev in
        --queue) mapfile -t COMPREPLY < <(compgen -W "$(bgtaskctl queues --no-legend 2>/dev/null | while read -r q _; do echo "$q"; done)" -- "$cur"); return ;;
        --state) mapfile -t COMPREPLY < <(compgen -W 'delayed queued running paused finished failed stopped' -- "$cur"); return ;;
        --user) mapfile -t COMPREPLY < <(compgen -u -- "$cur"); return ;;
        -s|--signal) mapfile -t COMPREPLY < <(compgen -A signal -- "$cur"); return ;;
        -o|--output) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$cur"); return ;;
        -d|--cwd) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
        -p|--property) mapfile -t COMPREPLY < <(compgen -S = -W 'MemoryMax MemoryHigh MemorySwapMax CPUQuota CPUWeight TasksMax IOWeight RuntimeMaxSec LimitNOFILE UMask Nice OOMScoreAdjust' -- "$cur"); return ;;
    esac
    if [[ -z $verb ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$verbs --help --version --socket" -- "$cur")
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(bgtaskctl "$verb" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]+')" -- "$cur")
    else
        case $verb in
            stop|kill|wait|signal) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state queued --state delayed --state running --state paused)" -- "$cur") ;;
            pause) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state running)" -- "$cur") ;;
            resume) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state paused)" -- "$cur") ;;
            retry|rm) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids --state finished --state failed --state stopped -n 200)" -- "$cur") ;;
            status|show|output|logs|signals|config) mapfile -t COMPREPLY < <(compgen -W "$(_bgtaskctl_ids -n 200 --all)" -- "$cur") ;;
            queues) mapfile -t COMPREPLY < <(compgen -W 'list pause resume' -- "$cur") ;;
        esac
    fi
}

complete -F _bgtaskctl bgtaskctl
