#!/usr/bin/env bash
# prefill_node.sh: vLLM-Ascend prefill instance, TP4 DP4 EP16 on ascend-910b2
# vLLM-Ascend 0.13; 2 node(s) x 8 NPU dies per instance, 1 instance(s); written by autotune.
# Prefill side of a pair: decode instances must run with MooncakeConnectorV1 too.
# 2 servers on every node, at PORT to PORT + 1: all of them belong behind the proxy.
set -euo pipefail

MODEL="${MODEL:-vllm-ascend/DeepSeek-R1-0528-W8A8}"
PORT="${PORT:-8000}"
KV_PORT="${KV_PORT:-28000}"
: "${NODE_ADDRESS:?address of this node on the network interface NIC}"
: "${NIC:?network interface of NODE_ADDRESS, e.g. eth0}"
: "${HEAD_ADDRESS:?address of the node with NODE_RANK 0}"
: "${NODE_RANK:?rank of this node in the instance, 0..1}"
if ! [[ "$NODE_RANK" =~ ^[0-9]+$ ]] || (( NODE_RANK >= 2 )); then
  echo "NODE_RANK must be 0..1 (got '$NODE_RANK')" >&2
  exit 1
fi
if command -v npu-smi >/dev/null 2>&1; then
  found="$(npu-smi info -l | grep -c 'NPU ID' || true)"
  if (( found * 1 < 8 )); then
    echo "this plan needs 8 NPU dies on every node, found $((found * 1))" >&2
    exit 1
  fi
fi

export HCCL_IF_IP="$NODE_ADDRESS"
export HCCL_SOCKET_IFNAME="$NIC"
export GLOO_SOCKET_IFNAME="$NIC"
export TP_SOCKET_IFNAME="$NIC"
export HCCL_BUFFSIZE=200
export OMP_PROC_BIND=false
export OMP_NUM_THREADS=10
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export TASK_QUEUE_ENABLE=1
export HCCL_INTRA_PCIE_ENABLE=1
export HCCL_INTRA_ROCE_ENABLE=0

# One server for each of this node's 2 data-parallel ranks, each with its own NPUs and port.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for (( rank = 0; rank < 2; rank++ )); do
  first=$(( 0 + rank * 4 ))
  ASCEND_RT_VISIBLE_DEVICES="$(seq -s, "$first" "$(( first + 3 ))")" \
  vllm serve "$MODEL" \
    --host 0.0.0.0 \
    --port "$(( PORT + rank ))" \
    --tensor-parallel-size 4 \
    --data-parallel-size 4 \
    --data-parallel-rank "$(( NODE_RANK * 2 + rank ))" \
    --data-parallel-address "$HEAD_ADDRESS" \
    --data-parallel-rpc-port 13345 \
    --enable-expert-parallel \
    --max-model-len 4096 \
    --max-num-batched-tokens 17886 \
    --gpu-memory-utilization 0.92 \
    --quantization ascend \
    --enforce-eager \
    --additional-config "{\"recompute_scheduler_enable\":true}" \
    --kv-transfer-config "{\"kv_connector\":\"MooncakeConnectorV1\",\"kv_role\":\"kv_producer\",\"kv_port\":\"$KV_PORT\",\"engine_id\":\"$NODE_ADDRESS-$(( PORT + rank ))\",\"kv_connector_extra_config\":{\"prefill\":{\"dp_size\":4,\"tp_size\":4},\"decode\":{\"dp_size\":16,\"tp_size\":2}}}" &
done
wait -n  # a server that ends takes the others with it
