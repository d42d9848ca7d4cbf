# shellcheck shell=bash
# envfs for bash: source this file, or put in ~/.bashrc:  eval "$(envfs hook bash)"
#
# Defines one function, envfs. Only activate, deactivate and reactivate are evaluated in this
# shell; everything else is the program. Prompts, traps and PROMPT_COMMAND are left alone.

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
        # The prompt is not exported, and PATH need not be, so they are passed by value. What is
        # printed is evaluated only if all went well.
        __envfs_text="$(PATH="${PATH-}" PS1="${PS1-}" command envfs __shell bash $$ "$@")" || return
        # No variable or argument of this function may be seen by scripts of the environment.
        set -- "$__envfs_text"
        unset -v __envfs_word __envfs_text __envfs_status
        eval "set --
$1"
        ;;
    commit | discard | rollback)
        __envfs_status=0
        command envfs "$@" || __envfs_status=$?
        # Programs may have come or gone.
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
