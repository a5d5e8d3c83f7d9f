#!/usr/bin/env bash
# decode_node.sh: vLLM-Ascend decode instance, TP2 DP16 EP32 on ascend-910b2
# vLLM-Ascend 0.13; 4 node(s) x 8 NPU dies per instance, 1 instance(s); written by autotune.
# Decode side of a pair: prefill instances must run with MooncakeConnectorV1 too.
# 4 servers on every node, at PORT to PORT + 3: all of them belong behind the proxy.
set -euo pipefail

MODEL="${MODEL:-vllm-ascend/DeepSeek-R1-0528-W8A8}"
PORT="${PORT:-8000}"
KV_PORT="${KV_PORT:-28000}"
: "${NODE_ADDRESS:?address of this node on the network interface NIC}"
: "${NIC:?network interface of NODE_ADDRESS, e.g. eth0}"
: "${HEAD_ADDRESS:?address of the node with NODE_RANK 0}"
: "${NODE_RANK:?rank of this node in the instance, 0..3}"
if ! [[ "$NODE_RANK" =~ ^[0-9]+$ ]] || (( NODE_RANK >= 4 )); then
  echo "NODE_RANK must be 0..3 (got '$NODE_RANK')" >&2
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
export HCCL_BUFFSIZE=292
export OMP_PROC_BIND=false
export OMP_NUM_THREADS=10
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export TASK_QUEUE_ENABLE=1
export HCCL_INTRA_PCIE_ENABLE=1
export HCCL_INTRA_ROCE_ENABLE=0

# One server for each of this node's 4 data-parallel ranks, each with its own NPUs and port.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for (( rank = 0; rank < 4; rank++ )); do
  first=$(( 0 + rank * 2 ))
  ASCEND_RT_VISIBLE_DEVICES="$(seq -s, "$first" "$(( first + 1 ))")" \
  vllm serve "$MODEL" \
    --host 0.0.0.0 \
    --port "$(( PORT + rank ))" \
    --tensor-parallel-size 2 \
    --data-parallel-size 16 \
    --data-parallel-rank "$(( NODE_RANK * 4 + rank ))" \
    --data-parallel-address "$HEAD_ADDRESS" \
    --data-parallel-rpc-port 13345 \
    --enable-expert-parallel \
    --max-model-len 4096 \
    --max-num-seqs 77 \
    --max-num-batched-tokens 77 \
    --gpu-memory-utilization 0.86 \
    --quantization ascend \
    --compilation-config '{"cudagraph_mode":"FULL_DECODE_ONLY"}' \
    --additional-config "{\"recompute_scheduler_enable\":true,\"multistream_overlap_shared_expert\":true}" \
    --kv-transfer-config "{\"kv_connector\":\"MooncakeConnectorV1\",\"kv_role\":\"kv_consumer\",\"kv_port\":\"$KV_PORT\",\"engine_id\":\"$NODE_ADDRESS-$(( PORT + rank ))\",\"kv_connector_extra_config\":{\"prefill\":{\"dp_size\":4,\"tp_size\":4},\"decode\":{\"dp_size\":16,\"tp_size\":2}}}" &
done
wait -n  # a server that ends takes the others with it
