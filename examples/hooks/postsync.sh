#!/bin/sh
# Commits an environment after a repository was synced into it, as a hook of Gentoo's emaint:
#
#   cp postsync.sh /etc/portage/repo.postsync.d/50-envfs
#
# emaint calls it with the name, the address and the path of each repository. Other programs that sync a
# tree can call it in the same way. A path that is no environment is left alone.
set -eu
name=$1 address=$2 path=$3
if envfs status "$path" >/dev/null 2>&1; then
    exec envfs commit "$path" --if-changed 1 --message "sync of $name from $address"
fi
