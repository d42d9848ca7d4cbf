# envfs for zsh: source this file, or put in ~/.zshrc:  eval "$(envfs hook zsh)"
#
# Defines one function, envfs. Only activate, deactivate and reactivate are evaluated in this
# shell; everything else is the program. Prompts, traps and hooks are left alone.

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
        # The prompt is not exported, and PATH need not be, so they are passed by value. What is
        # printed is evaluated only if all went well.
        __envfs_text="$(PATH="${PATH-}" PS1="${PS1-}" command envfs __shell zsh $$ "$@")" || return
        # No variable or argument of this function may be seen by scripts of the environment.
        set -- "$__envfs_text"
        unset __envfs_word __envfs_text
        eval "set --
$1"
        ;;
    (commit|discard|rollback)
        local __envfs_status=0
        command envfs "$@" || __envfs_status=$?
        # Programs may have come or gone.
        rehash
        return "$__envfs_status"
        ;;
    (*)
        command envfs "$@"
        ;;
    esac
}

if [[ -o interactive ]]; then
    function _envfs {
        local -a candidates
        candidates=("${(@f)$(command envfs __complete "$((CURRENT - 1))" -- "${words[@]}" 2>/dev/null)}")
        if [[ "${candidates[1]-}" == "//files" ]]; then
            _files
        else
            compadd -- "${candidates[@]}"
        fi
    }
    # Only where the user has set completion up.
    if (( ${+functions[compdef]} )); then
        compdef _envfs envfs
    fi
fi
