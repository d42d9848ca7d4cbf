# shellcheck shell=bash
# envfs for direnv: save this file as ~/.config/direnv/lib/envfs.sh, or:
#   envfs hook direnv > ~/.config/direnv/lib/envfs.sh
#
# Then an .envrc with the line "use envfs NAME" activates the environment NAME in that directory and
# below it. direnv restores all variables when the directory is left.

use_envfs() {
    local __envfs_text
    __envfs_text="$(envfs activate --shell bash "$@")" || return
    eval "$__envfs_text"
}
