"""`vllm bench serve` of a simulated world: random token ids over HTTP, and the result file that vLLM's own client writes."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import urllib.parse
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Seen:
    """What one request saw."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)
    failed: bool = False


def bench(arguments: list[str]) -> None:
    """Send a load and save what came back."""
    asked = _parser().parse_args(arguments)
    began = time.monotonic()
    seen = asyncio.run(_all(asked))
    result = _result(asked, seen, time.monotonic() - began)
    with open(asked.result_filename, "w") as file:
        json.dump(result, file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for name in ("--base-url", "--model", "--served-model-name", "--result-filename"):
        parser.add_argument(name, required=True)
    for name in ("--random-input-len", "--random-output-len", "--num-prompts"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--max-concurrency", type=int)
    parser.add_argument("--request-rate", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    for name in ("--dataset-name", "--percentile-metrics", "--metric-percentiles", "--random-range-ratio"):
        parser.add_argument(name)
    for name in ("--ignore-eos", "--disable-tqdm", "--save-result", "--trust-remote-code"):
        parser.add_argument(name, action="store_true")
    return parser


async def _all(asked: argparse.Namespace) -> list[Seen]:
    slots = asyncio.Semaphore(asked.max_concurrency or asked.num_prompts)
    gaps = np.random.default_rng(asked.seed).exponential(1 / asked.request_rate, asked.num_prompts)
    due = np.cumsum(gaps) if np.isfinite(asked.request_rate) else np.zeros(asked.num_prompts)
    began = time.monotonic()

    async def one(at: float) -> Seen:
        await asyncio.sleep(max(began + at - time.monotonic(), 0))
        async with slots:
            return await _request(asked)

    return await asyncio.gather(*(one(float(at)) for at in due))


async def _request(asked: argparse.Namespace) -> Seen:
    where = urllib.parse.urlsplit(asked.base_url)
    prompt = list(range(asked.random_input_len))
    body = {"model": asked.served_model_name, "prompt": prompt, "max_tokens": asked.random_output_len, "stream": True}
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    seen = Seen(time.monotonic())
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        while line := await reader.readline():
            if line.startswith(b"data: {") and b'"choices": []' not in line:
                seen.token_s.append(time.monotonic())
        writer.close()
    except OSError:
        seen.failed = True
    seen.failed |= len(seen.token_s) < asked.random_output_len
    return seen


def _result(asked: argparse.Namespace, all_seen: list[Seen], duration_s: float) -> dict[str, object]:
    seen = [one for one in all_seen if not one.failed]
    tokens = sum(len(one.token_s) for one in seen)
    result: dict[str, object] = {
        "model_id": asked.model,
        "num_prompts": asked.num_prompts,
        "request_rate": asked.request_rate if np.isfinite(asked.request_rate) else "inf",
        "max_concurrency": asked.max_concurrency,
        "duration": duration_s,
        "completed": len(seen),
        "failed": len(all_seen) - len(seen),
        "total_input_tokens": asked.random_input_len * len(seen),
        "total_output_tokens": tokens,
        "request_throughput": len(seen) / duration_s,
        "output_throughput": tokens / duration_s,
    }
    if seen:
        ttft = np.array([one.token_s[0] - one.sent_s for one in seen]) * 1e3
        tpot = np.array([(one.token_s[-1] - one.token_s[0]) / max(len(one.token_s) - 1, 1) for one in seen]) * 1e3
        itl = np.concatenate([np.diff(one.token_s) for one in seen]) * 1e3
        for name, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl)):
            result |= {f"mean_{name}_ms": float(values.mean()), f"median_{name}_ms": float(np.median(values))}
            result |= {f"p{share}_{name}_ms": float(np.percentile(values, share)) for share in (50, 95, 99)}
    return result
