#!/bin/bash
# srun starts this once on each node. It becomes the launcher of that node's processes: under most
# sites' SLURM only the first process of a task hears a signal, and it passes stop requests on.

# First of all a mark. A node that leaves none does not see the run directory; and a line that fails
# here is written behind it, with a pause: others shall show whether it is the same for them.
node=${SLURMD_NODENAME:-$(hostname)} mark=$1/logs/node-$SLURM_NODEID-mark.txt
failed() {
    trap - EXIT
    echo "error: on $node, $1" >&2
    echo "failed $1" >> "$mark"
    sleep 10
    exit 1
}
line_failed() {  # unless it is one of a file that a line reads: there it may mean nothing
    [ "$1" != 143 ] || { trap - EXIT; exit 143; }  # SLURM ended it: no fault of this node
    [ -n "${BASH_SOURCE[2]-}" ] || failed "line $2 of node.sh ended with exit code $1: $3"
}
trap 'line_failed $? $LINENO "$BASH_COMMAND"' ERR
trap 'failed "node.sh was ended by: $BASH_COMMAND"' EXIT
trap 'trap - EXIT; exit 143' TERM
trap '' USR1  # a stop request that comes before the launcher listens; it is sent again
echo "came $node" > "$mark"

cd /shared/runs/digits-1/snapshot
/shared/venv/bin/python -c 'import launcher'

# SLURM_NODEID is this node's own only here: in the batch script it is 0.
exec /shared/venv/bin/python -m launcher job node "$1" \
    --nproc 1 --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
    --rdzv-endpoint "$LAUNCHER_ENDPOINT"
