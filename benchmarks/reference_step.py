"""A real decode step in plain PyTorch, and what `autotune predict` says of it.

DeepSeek-V3's layer dimensions, a few layers, random BF16 weights, MLA attention over a latent cache, top-8 of 256 experts with
dispatch and combine over the GPUs, one CUDA graph per step. On a machine with GPUs:

    torchrun --nproc-per-node 2 benchmarks/reference_step.py run --out steps.json

and anywhere:

    python benchmarks/reference_step.py compare steps.json --hw hgx-h200 --calibration shipped --calibration mine.yaml

Every token has experts on nearly every rank of so small a group, so dispatch is an all-gather and combine a reduce-scatter
(the model's `allgather_reducescatter`). The step has no scheduler and no sampling beyond argmax: the host's time per step is
left out of the prediction.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, Q_RANK, LATENT, ROPE, NOPE, V_DIM = 7168, 128, 1536, 512, 64, 128, 128
DENSE_INTERMEDIATE, INTERMEDIATE, EXPERTS, TOP_K, VOCABULARY = 18432, 2048, 256, 8, 129280
DENSE_LAYERS, MOE_LAYERS = 3, 3
ROOM = 1.25
"""Rows reserved for a rank's pairs, over the mean: a CUDA graph cannot grow."""
REPLAYS = 20
BATCHES = (16, 64, 256)
CONTEXTS = (1024, 4096)
TRACED = (1, 64, 1024)
"""(tp, sequences per GPU, context) whose profiler trace is kept, for `autotune calibrate`."""


@dataclass(frozen=True)
class Ranks:
    """Layout of one step."""

    tp: int
    dp: int
    rank: int

    @property
    def world(self) -> int:
        return self.tp * self.dp

    def label(self) -> str:
        """DP2 EP2."""
        return " ".join([*(f"{k}{v}" for k, v in (("TP", self.tp), ("DP", self.dp)) if v > 1), f"EP{self.world}"])


class Model:
    """Weights and one step; every method works on tensors of fixed shape."""

    def __init__(self, ranks: Ranks, batch: int, context: int) -> None:
        import torch
        import torch.distributed as dist

        self.torch, self.dist, self.ranks, self.batch, self.context = torch, dist, ranks, batch, context
        self.heads = HEADS // ranks.tp
        groups = [list(range(d * ranks.tp, (d + 1) * ranks.tp)) for d in range(ranks.dp)]
        self.tp_group = [dist.new_group(members) for members in groups][ranks.rank // ranks.tp] if ranks.tp > 1 else None
        self.layers = [self._layer(moe=i >= DENSE_LAYERS) for i in range(DENSE_LAYERS + MOE_LAYERS)]
        self.head = self._weight(VOCABULARY // ranks.tp, HIDDEN)
        self.angle = torch.randn(ROPE // 2, device="cuda")
        self.x = torch.randn(batch, HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.core = self._fastest_attention()
        self.active: list[Any] = []
        """Experts with tokens on this rank, of every MoE layer of the last eager step."""

    def _fastest_attention(self) -> Any:
        """Of the kernels that `autotune measure` times, the fastest at this shape."""
        from autotune.measuring.attention import measured_mla_decode
        from autotune.measuring.clock import timed

        kernels = measured_mla_decode(self.batch, self.context, self.heads)
        return min(kernels, key=lambda kernel: timed(kernel).latency_s).run

    def _weight(self, *shape: int) -> Any:
        return self.torch.randn(*shape, device="cuda", dtype=self.torch.bfloat16) / shape[-1] ** 0.5

    def _layer(self, *, moe: bool) -> dict[str, Any]:
        tp, heads = self.ranks.tp, self.heads
        weights = {
            "in": self._weight(Q_RANK + LATENT + ROPE, HIDDEN),
            "q_b": self._weight(heads * (NOPE + ROPE), Q_RANK),
            "k_absorb": self._weight(heads, NOPE, LATENT),
            "v_absorb": self._weight(heads, LATENT, V_DIM),
            "out": self._weight(HIDDEN, heads * V_DIM),
            "cache": self._weight(self.batch, self.context, LATENT + ROPE),
        }
        if not moe:
            ffn = {
                "gate_up": self._weight(2 * DENSE_INTERMEDIATE // tp, HIDDEN),
                "down": self._weight(HIDDEN, DENSE_INTERMEDIATE // tp),
            }
            return weights | ffn
        local = EXPERTS // self.ranks.world
        shards = tp if self.ranks.dp == 1 else 1
        return weights | {
            "router": self._weight(EXPERTS, HIDDEN),
            "gate_up": self._weight(2 * INTERMEDIATE // shards, HIDDEN),
            "down": self._weight(HIDDEN, INTERMEDIATE // shards),
            "experts": (self._weight(local, 2 * INTERMEDIATE, HIDDEN), self._weight(local, HIDDEN, INTERMEDIATE)),
        }

    def step(self) -> Any:
        """Hidden states of the batch -> next tokens."""
        x = self.x
        for layer in self.layers:
            x = x + self._attention(layer, self._norm(x))
            y = self._norm(x)
            x = x + (self._moe(layer, y) if "router" in layer else self._joined(self._ffn(layer, y)))
        return self.torch.argmax(self._norm(x) @ self.head.t(), dim=-1)

    def _norm(self, x: Any) -> Any:
        return self.torch.nn.functional.rms_norm(x, x.shape[-1:])

    def _attention(self, w: dict[str, Any], x: Any) -> Any:
        torch, batch = self.torch, len(x)
        q, latent, rope = (x @ w["in"].t()).split([Q_RANK, LATENT, ROPE], dim=-1)
        q = (self._norm(q) @ w["q_b"].t()).view(batch, self.heads, NOPE + ROPE)
        absorbed = torch.bmm(q[..., :NOPE].transpose(0, 1), w["k_absorb"]).transpose(0, 1)
        q = torch.cat([absorbed, self._rotated(q[..., NOPE:])], dim=-1)
        w["cache"][:, -1] = torch.cat([self._norm(latent), self._rotated(rope)], dim=-1)
        out = self.core(q, w["cache"])
        out = torch.bmm(out.transpose(0, 1), w["v_absorb"]).transpose(0, 1).reshape(batch, -1)
        return self._joined(out @ w["out"].t())

    def _rotated(self, x: Any) -> Any:
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = self.angle.cos().to(x.dtype), self.angle.sin().to(x.dtype)
        return self.torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)

    def _joined(self, x: Any) -> Any:
        if self.tp_group is not None:
            self.dist.all_reduce(x, group=self.tp_group)
        return x

    def _ffn(self, w: dict[str, Any], x: Any) -> Any:
        from autotune.measuring.gemms import swiglu

        return swiglu(x @ w["gate_up"].t()) @ w["down"].t()

    def _moe(self, w: dict[str, Any], x: Any) -> Any:
        torch, data_parallel = self.torch, self.ranks.dp > 1
        fed = x.chunk(self.ranks.tp)[self.ranks.rank % self.ranks.tp].contiguous() if data_parallel else x
        gates, chosen = torch.topk(torch.sigmoid(fed @ w["router"].t()), TOP_K)
        gates = gates / gates.sum(dim=-1, keepdim=True)
        shared = self._ffn(w, fed)
        if data_parallel:
            everyone, gates, chosen = (self._gathered(t) for t in (fed, gates, chosen))
        else:
            everyone = x
        routed = self._experts(w["experts"], everyone, gates, chosen)
        if not data_parallel:
            return self._joined(routed + shared)
        mine = torch.empty_like(fed)
        self.dist.reduce_scatter_tensor(mine, routed)
        mine = mine + shared
        return self._regathered(mine) if self.ranks.tp > 1 else mine

    def _gathered(self, x: Any) -> Any:
        out = self.torch.empty(len(x) * self.ranks.world, *x.shape[1:], device="cuda", dtype=x.dtype)
        self.dist.all_gather_into_tensor(out, x.contiguous())
        return out

    def _regathered(self, x: Any) -> Any:
        """Tokens of an attention rank's TP group, which the experts were fed in parts."""
        out = self.torch.empty(len(x) * self.ranks.tp, HIDDEN, device="cuda", dtype=x.dtype)
        self.dist.all_gather_into_tensor(out, x, group=self.tp_group)
        return out

    def _experts(self, weights: Any, x: Any, gates: Any, chosen: Any) -> Any:
        from autotune.measuring.gemms import run_experts

        torch = self.torch
        local = EXPERTS // self.ranks.world
        mine = chosen.flatten() - self.ranks.rank * local
        elsewhere = (mine < 0) | (mine >= local)
        expert = torch.where(elsewhere, local, mine)  # pairs of other ranks sort behind all of this one's
        room = min(int(len(expert) / self.ranks.world * ROOM) + 64, len(expert))
        order = torch.argsort(expert)[:room]
        ends = torch.searchsorted(expert[order], torch.arange(1, local + 1, device="cuda")).int()
        if not torch.cuda.is_current_stream_capturing():
            self.active.append(torch.unique(expert[order][expert[order] < local]).numel())
        used = torch.arange(room, device="cuda")[:, None] < ends[-1]
        gate = torch.where(used, gates.flatten()[order][:, None], 0.0)
        return run_experts(x, weights, gate, order // TOP_K, ends, used)


def measure(ranks: Ranks, batch: int, context: int, trace: Path | None = None) -> dict[str, Any]:
    """Seconds of a step of one layout, `batch` sequences per attention-DP rank; trace : profiler trace to write."""
    import torch
    import torch.distributed as dist

    model = Model(ranks, batch, context)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            model.active.clear()
            model.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        model.step()
    seconds = []
    for _ in range(REPLAYS):
        dist.barrier()
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    kernels = _kernels(graph, trace) if ranks.rank == 0 else {}
    if ranks.rank != 0:
        graph.replay()
        torch.cuda.synchronize()
    low, median, high = np.percentile(seconds, [10, 50, 90])
    return {
        "tp": ranks.tp, "dp": ranks.dp, "batch": batch, "context": context, "layers": DENSE_LAYERS + MOE_LAYERS,
        "step_s": float(median), "spread": float((high - low) / median), "kernels_s": kernels,
        "active_experts": float(np.mean(model.active)),
    }  # fmt: skip


def _kernels(graph: Any, trace: Path | None) -> dict[str, float]:
    """GPU seconds of one replay by kernel name (shortened), largest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        graph.replay()
        torch.cuda.synchronize()
    if trace is not None:
        traced.export_chrome_trace(str(trace))
    found: dict[str, float] = {}
    for event in traced.key_averages():
        name = event.key[:60]
        found[name] = found.get(name, 0.0) + event.device_time_total / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1])[:25])


def run(out: Path) -> None:
    """All layouts, batches and contexts on the GPUs of torchrun; rank 0 writes."""
    import gc

    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.manual_seed(rank)
    layouts = [(tp, world // tp) for tp in (1, 2, 4, 8) if world % tp == 0]
    found = []
    for (tp, dp), batch, context in itertools.product(layouts, BATCHES, CONTEXTS):
        per_rank = batch * tp  # the same sequences in all, whatever the layout
        try:
            traced = (tp, batch, context) == TRACED
            trace = out.with_suffix(".pt.trace.json") if traced else None
            found.append(measure(Ranks(tp, dp, rank), per_rank, context, trace))
        except torch.OutOfMemoryError as error:
            found.append({"tp": tp, "dp": dp, "batch": per_rank, "context": context, "failed": str(error).splitlines()[0]})
        gc.collect()
        torch.cuda.empty_cache()
        if rank == 0:
            print(json.dumps({k: v for k, v in found[-1].items() if k != "kernels_s"}), flush=True)
            out.write_text(
                json.dumps({"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "steps": found}, indent=1)
            )
    dist.destroy_process_group()


def predicted(step: dict[str, Any], hardware: str, calibration: str) -> Any:
    """The same step, priced."""
    from autotune.documents.deployment import Deployment
    from autotune.predicting.step import predict

    world = step["tp"] * step["dp"]
    balance = {"skew": 1.0, "popularity_sigma": 0.0}  # random weights choose experts evenly
    pool = {
        "tp": step["tp"], "dp": step["dp"], "ep": world, "batch_per_dp_rank": step["batch"],
        "all2all_backend": "allgather_reducescatter" if step["dp"] > 1 else "none", "expert_balance": balance,
    }  # fmt: skip
    document = {
        "hardware": hardware,
        "model": "deepseek-v3",
        "layers": step["layers"],
        "precision": "bf16",
        "engine": {"name": "vllm"},
        "calibration": {} if calibration == "shipped" else {"file": calibration},
        "workload": {"isl_tokens": step["context"], "osl_tokens": 2, "mean_context_tokens": step["context"]},
        "pools": {"decode": pool},
    }
    return predict(Deployment.model_validate(document))


def compare(steps: Path, hardware: str, calibrations: list[str], plot: Path | None) -> None:
    """A table of measured and predicted steps, errors, and whether layouts rank right."""
    measured = [step for step in json.loads(steps.read_text())["steps"] if "step_s" in step]
    names = [Path(name).stem for name in calibrations]
    print("| layout | sequences per rank | context | measured | " + " | ".join(names) + " |")
    print("|---|---:|---:|---:|" + "---:|" * len(names))
    found = []
    for step in measured:
        guesses = []
        for calibration in calibrations:
            prediction = predicted(step, hardware, calibration)
            host_s = sum(line.time_s for line in prediction.operators if line.name == "host")
            guesses.append(prediction.step_s - host_s)
        found.append(guesses)
        cells = " | ".join(f"{guess * 1e3:.2f} ms ({guess / step['step_s'] - 1:+.0%})" for guess in guesses)
        label = Ranks(step["tp"], step["dp"], 0).label()
        print(f"| {label} | {step['batch']} | {step['context']:,} | {step['step_s'] * 1e3:.2f} ms | {cells} |")
    real, guessed = np.array([step["step_s"] for step in measured]), np.array(found).T
    if plot is not None:
        draw(real, guessed, names, plot)
    for name, values in zip(names, guessed, strict=True):
        errors = values / real - 1
        right, of = _ranked(measured, real, values)
        print(
            f"\n{name}: mean absolute error {np.abs(errors).mean():.1%}, worst {errors[np.argmax(np.abs(errors))]:+.1%}; "
            f"{np.mean(np.abs(errors) <= 0.1):.0%} within 10 %; layouts ranked right in {right} of {of} cases"
        )


def draw(real: Any, guessed: Any, names: list[str], path: Path) -> None:
    """Predicted against measured steps, with the band of 10 %."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    ends = np.array([0, real.max() * 1.1e3])
    axes.plot(ends, ends, color="grey", lw=0.8)
    axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="grey", alpha=0.2, label="within 10 %")
    for name, values in zip(names, guessed, strict=True):
        axes.plot(real * 1e3, values * 1e3, "o", label=name)
    axes.set(xlabel="measured step, ms", ylabel="predicted step, ms", title="PyTorch decode steps, predicted and measured")
    axes.legend()
    figure.savefig(path, dpi=130)


def _ranked(measured: list[dict[str, Any]], real: Any, guessed: Any) -> tuple[int, int]:
    """Cases (sequences in all, context) whose fastest layout is predicted to be the fastest."""
    cases: dict[tuple[int, int], list[int]] = {}
    for i, step in enumerate(measured):
        cases.setdefault((step["batch"] * step["dp"], step["context"]), []).append(i)
    compared = [rows for rows in cases.values() if len(rows) > 1]
    right = sum(rows[int(np.argmin(real[rows]))] == rows[int(np.argmin(guessed[rows]))] for rows in compared)
    return right, len(compared)


def main() -> None:
    """run or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    runs = jobs.add_parser("run")
    runs.add_argument("--out", type=Path, default=Path("steps.json"))
    compares = jobs.add_parser("compare")
    compares.add_argument("steps", type=Path)
    compares.add_argument("--hw", required=True)
    compares.add_argument("--calibration", action="append", required=True, help="'shipped' or a file; repeat for several")
    compares.add_argument("--plot", type=Path, help="picture of predicted against measured steps")
    given = parser.parse_args()
    if given.job == "run":
        run(given.out)
    else:
        compare(given.steps, given.hw, given.calibration, given.plot)


if __name__ == "__main__":
    main()
