# To be sourced in ~/.bashrc or ~/.zshrc: commits the active environment after pip, conda or npm changed it.
#
# The message of the revision is the command, so that envfs log reads like a list of what was installed.
# The status is that of the installer. A failed commit is reported and changes nothing.

_envfs_commit_after() {
    command "$@" || return
    [ -n "${ENVFS_ENV:-}" ] || return 0
    case $2 in
        install | uninstall | update | upgrade | remove | create | ci)
            envfs commit --quiet --message "$*" "$ENVFS_ENV" || echo "$1: not committed" >&2 ;;
    esac
    return 0
}

pip() { _envfs_commit_after pip "$@"; }
conda() { _envfs_commit_after conda "$@"; }
npm() { _envfs_commit_after npm "$@"; }
