#!/usr/bin/env bash
# bench.sh: the load that the service was planned for
# Written by autotune. Run it from a machine that reaches the service and has the engine installed.
# Afterwards: autotune verify "$RESULT" --deployment RUN (the run folder, for its best plan, or a deployment file).
set -euo pipefail

MODEL="${MODEL:-vllm-ascend/DeepSeek-R1-0528-W8A8}"
RESULT="${RESULT:-bench.json}"
: "${URL:?where the service listens, e.g. http://router:9000}"

exec vllm bench serve \
  --base-url "$URL" \
  --model "$MODEL" \
  --dataset-name random \
  --random-input-len 2048 \
  --random-output-len 2048 \
  --num-prompts 1805 \
  --request-rate 6.01605 \
  --ignore-eos \
  --percentile-metrics ttft,tpot,itl,e2el \
  --metric-percentiles 50,95,99 \
  --save-result \
  --result-filename "$RESULT"
