#!/usr/bin/env bash
# Train on several GPUs (or, where there is none, in several CPU processes):
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Several nodes: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
set -euo pipefail
CONFIG=${1:?usage: tools/dist_train.sh CONFIG GPUS [options]}
GPUS=${2:?usage: tools/dist_train.sh CONFIG GPUS [options]}
export MMSEG_DAVPT_LAUNCHER=$$  # exec keeps the process id: ranks end with it, also after kill -9
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}" \
    --nproc_per_node="$GPUS" "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
