# envfs for zsh: source this file, or put in ~/.zshrc:  eval "$(envfs hook zsh)"
#
# Defines one function, envfs. It evaluates the output of activate, deactivate and reactivate in
# this shell and passes everything else to the program. Does not change traps or hooks, and the
# prompt only where an environment is active.

function envfs {
    case "${1-}" in
    (activate|deactivate|reactivate)
        local __envfs_word __envfs_text
        for __envfs_word in "$@"; do
            case "$__envfs_word" in
            (-h|--help|--shell|--shell=*)
                command envfs "$@"
                return
                ;;
            esac
        done
        # PS1 is not exported, and PATH may not be, so they are passed explicitly. The output is
        # evaluated only if the command succeeded.
        __envfs_text="$(PATH="${PATH-}" PS1="${PS1-}" command envfs __shell zsh $$ "$@")" || return
        # The environment's scripts must not see variables or arguments of this function.
        set -- "$__envfs_text"
        unset __envfs_word __envfs_text
        eval "set --
$1"
        ;;
    (commit|discard|rollback|restore|undo)
        local __envfs_status=0
        command envfs "$@" || __envfs_status=$?
        # Programs may have been added or removed.
        rehash
        return "$__envfs_status"
        ;;
    (*)
        command envfs "$@"
        ;;
    esac
}

if [[ -o interactive ]]; then
    # In a shell that inherited an active environment, start files may have reset PATH, and the prompt
    # is a new one. A conda environment on top has taken the place in PATH.
    if [[ -n "${ENVFS_PREFIX-}" && "${CONDA_PREFIX:-$ENVFS_PREFIX}" == "$ENVFS_PREFIX" ]]; then
        if [[ ":${PATH-}:" == *":$ENVFS_PREFIX/"* ]]; then
            if [[ -n "${PS1-}" && "$PS1" != *POWERLINE_COMMAND* && "$PS1" != *"${ENVFS_PROMPT_MODIFIER-}"* ]]; then
                PS1="${ENVFS_PROMPT_MODIFIER-}${PS1-}"
            fi
        else
            print -ru2 -- "envfs: $ENVFS_ENV is only half active in this shell, because PATH was reset: envfs reactivate"
        fi
    fi
    function _envfs {
        local -a candidates line
        # The words without quotes; one that is open cannot be removed by (Q).
        line=("${(Q)words[@]}")
        line[CURRENT]="${line[CURRENT]#[\"\']}"
        candidates=("${(@f)$(command envfs __complete "$((CURRENT - 1))" -- "${line[@]}" 2>/dev/null)}")
        if [[ "${candidates[1]-}" == "//files" ]]; then
            _files
        elif [[ "${candidates[1]-}" == "//dirs" ]]; then
            _files -/
        elif [[ "${candidates[1]-}" == *[/:] ]]; then
            # Paths are completed one directory at a time.
            compadd -S '' -- "${candidates[@]}"
        elif [[ -n "${candidates[1]-}" ]]; then
            compadd -- "${candidates[@]}"
        fi
    }
    # Only if the user has enabled completion.
    if (( ${+functions[compdef]} )); then
        compdef _envfs envfs
    fi
fi
