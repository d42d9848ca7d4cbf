# shellcheck shell=bash
# envfs for bash: source this file, or put in ~/.bashrc:  eval "$(envfs hook bash)"
#
# Defines one function, envfs. It evaluates the output of activate, deactivate and reactivate in
# this shell and passes everything else to the program. Does not change prompts, traps or
# PROMPT_COMMAND.

envfs() {
    local __envfs_word __envfs_text __envfs_status
    case "${1-}" in
    activate | deactivate | reactivate)
        for __envfs_word in "$@"; do
            case "$__envfs_word" in
            -h | --help | --shell | --shell=*)
                command envfs "$@"
                return
                ;;
            esac
        done
        # PS1 is not exported, and PATH may not be, so they are passed explicitly. The output is
        # evaluated only if the command succeeded.
        __envfs_text="$(PATH="${PATH-}" PS1="${PS1-}" command envfs __shell bash $$ "$@")" || return
        # The environment's scripts must not see variables or arguments of this function.
        set -- "$__envfs_text"
        unset -v __envfs_word __envfs_text __envfs_status
        eval "set --
$1"
        ;;
    commit | discard | rollback)
        __envfs_status=0
        command envfs "$@" || __envfs_status=$?
        # Programs may have been added or removed.
        hash -r
        return "$__envfs_status"
        ;;
    *)
        command envfs "$@"
        ;;
    esac
}

case $- in
*i*)
    __envfs_complete() {
        local IFS=$'\n'
        # shellcheck disable=SC2207
        COMPREPLY=($(command envfs __complete "$COMP_CWORD" -- "${COMP_WORDS[@]}" 2>/dev/null))
        if [ "${COMPREPLY[0]-}" = "//files" ]; then
            COMPREPLY=()
            compopt -o default
        fi
    }
    complete -F __envfs_complete envfs
    ;;
esac
