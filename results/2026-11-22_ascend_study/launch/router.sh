#!/usr/bin/env bash
# router.sh: one endpoint for both pools
# Written by autotune; the router is not part of the engine: examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py of vllm-ascend.
# Start it when the servers answer. Every data-parallel rank is a server: each node has several, one port after the other.
# The plan has 1 prefill and 1 decode instances.
set -euo pipefail

PORT="${PORT:-9000}"
: "${PREFILL_URLS:?prefill servers, separated by spaces, e.g. http://10.0.0.1:8000 http://10.0.0.2:8000}"
: "${DECODE_URLS:?decode servers, separated by spaces}"
: "${PROXY:?examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py of vllm-ascend}"

prefill_hosts=() prefill_ports=() decode_hosts=() decode_ports=()
for url in $PREFILL_URLS; do
  address="${url#*://}"
  prefill_hosts+=("${address%:*}") prefill_ports+=("${address##*:}")
done
for url in $DECODE_URLS; do
  address="${url#*://}"
  decode_hosts+=("${address%:*}") decode_ports+=("${address##*:}")
done

exec python3 "$PROXY" --host 0.0.0.0 --port "$PORT" \
  --prefiller-hosts "${prefill_hosts[@]}" --prefiller-ports "${prefill_ports[@]}" \
  --decoder-hosts "${decode_hosts[@]}" --decoder-ports "${decode_ports[@]}"
