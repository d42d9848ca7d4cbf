#!/bin/sh
# A prolog for Slurm (Prolog= in slurm.conf). slurmd runs it as root before the first step of a job
# on a node, outside of the job, so what it mounts does not end with the job.
#
# Mounts the environments of a site, for all users of the node, unless they are mounted. ENVIRONMENTS and
# ENVFS_HOME are set below. A failure would drain the node, so it is only logged: then jobs mount
# the environments themselves.
: "${ENVFS:=/usr/bin/envfs}" "${ENVFS_HOME:=/srv/envfs}" "${ENVIRONMENTS:=science}"
export ENVFS_HOME
# The control group is that of slurmd. It must not look like a job.
unset SLURM_JOB_ID SLURM_STEP_ID

for name in $ENVIRONMENTS; do
    "$ENVFS" --quiet mount --read-only "$name" >/dev/null ||
        logger -t envfs "cannot mount $name for jobs" || :
done
exit 0
