# shellcheck shell=bash
# envfs for bash: source this file, or put in ~/.bashrc:  eval "$(envfs hook bash)"
#
# Defines one function, envfs. It evaluates the output of activate, deactivate and reactivate in
# this shell and passes everything else to the program. Does not change traps or
# PROMPT_COMMAND, and the prompt only where an environment is active.

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
    commit | discard | rollback | restore | undo)
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
    # In a shell that inherited an active environment, start files may have reset PATH, and the prompt
    # is a new one. A conda environment on top has taken the place in PATH.
    if [ -n "${ENVFS_PREFIX-}" ] && [ "${CONDA_PREFIX:-$ENVFS_PREFIX}" = "$ENVFS_PREFIX" ]; then
        case ":${PATH-}:" in
        *":$ENVFS_PREFIX/"*)
            case "${PS1-}" in
            '' | *POWERLINE_COMMAND* | *"${ENVFS_PROMPT_MODIFIER-}"*) ;;
            *) PS1="${ENVFS_PROMPT_MODIFIER-}${PS1-}" ;;
            esac
            ;;
        *)
            printf '%s\n' "envfs: $ENVFS_ENV is only half active in this shell, because PATH was reset: envfs reactivate" >&2
            ;;
        esac
    fi
    __envfs_complete() {
        # bash passes the words in pieces and inserts completions as they are: envfs parses the line
        # and quotes them.
        mapfile -t COMPREPLY < <(command envfs __complete --bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
        case "${COMPREPLY[0]-}" in
        //files)
            COMPREPLY=()
            compopt -o default
            ;;
        //dirs)
            COMPREPLY=()
            compopt -o dirnames
            ;;
        */ | *:)
            # Paths are completed one directory at a time.
            compopt -o nospace
            ;;
        esac
    }
    complete -F __envfs_complete envfs
    ;;
esac
