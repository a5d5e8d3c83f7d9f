"""Replaying requests through the pools of a service: a fluid decode batch, prefill in whole batches, queues in order.

Between two events the decode batch is constant, so every running sequence gains one token per step time; sequences
finish in the order of a common clock that counts those tokens (processor sharing). Prompts are prefilled in batches of
whole prompts, as many as a step's token budget takes. Aggregated engines alternate: a prefill step delays every running
sequence by what it takes beyond a decode step. Disaggregated pools work side by side; a prompt joins the decode batch
when its KV cache has been transferred.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from autotune.serving.requests import Requests
from cost_models.arrays import Floats

NEVER = float("inf")
TOKEN_ROUNDING = 1e-9
BACKGROUND = -1
"""A sequence that ran before the first request came."""


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """Times of one service instance (or of its two pools)."""

    decode_step_s: Callable[[float], float]
    """Sequences decoding in one decode worker -> seconds per token of each."""
    prefill_s: Callable[[float, float], float]
    """(tokens of the busiest rank, mean tokens per rank) of a prefill step -> seconds."""
    prefill_extra_s: Callable[[float, float, float], float]
    """The same and the decode step it displaces or joins -> seconds that running sequences lose."""
    disaggregated: bool
    prefill_workers: int
    prefill_ranks: int
    """Attention-DP ranks of one prefill worker (or of the aggregated engine)."""
    prefill_tokens: float
    """Token budget per rank and prefill step."""
    decode_workers: int
    decode_slots: int
    """Sequences that all decode workers hold at most."""
    frontend_s: float
    """Tokenising, routing and scheduling before a prompt can start [s]."""
    transfer_s: float
    """Handing a prompt's KV cache to the decode pool [s]."""
    admission_interval_steps: int = 1
    """The engine looks for new prompts every so many decode steps."""
    gather_steps: int = 0
    """Decode steps that prompts wait so that all attention-DP ranks prefill together; 0 never."""


@dataclass(slots=True)
class _Decode:
    """Running sequences on a clock that counts tokens of each."""

    model: ServiceModel
    clock: float = 0.0
    running: list[tuple[float, int]] = field(default_factory=list)

    def step_s(self) -> float:
        return self.model.decode_step_s(len(self.running) / self.model.decode_workers)

    def next_finish_s(self) -> float:
        """Seconds until the next sequence finishes at the present batch."""
        return (self.running[0][0] - self.clock) * self.step_s() if self.running else NEVER

    def advance(self, seconds: float) -> None:
        if self.running and seconds > 0:
            self.clock += seconds / self.step_s()

    def start(self, request: int, tokens: float) -> None:
        heapq.heappush(self.running, (self.clock + max(tokens - 1, 0.0), request))


@dataclass(frozen=True, slots=True)
class Replay:
    """What each request saw, (n,) each."""

    sent_s: Floats
    first_token_s: Floats
    finished_s: Floats
    osl_tokens: Floats

    @property
    def ttft_s(self) -> Floats:
        return self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """Mean time between tokens of each request after its first."""
        return (self.finished_s - self.first_token_s) / np.maximum(self.osl_tokens - 1, 1)

    @property
    def output_tokens_per_s(self) -> float:
        return float(self.osl_tokens.sum() / (self.finished_s.max() - self.sent_s.min()))


def replay(requests: Requests, model: ServiceModel) -> Replay:
    """Run all requests to their end."""
    return _Run(requests, model).run()


def replay_steady(requests: Requests, model: ServiceModel, sequences: int) -> Replay:
    """Run an open loop on a service that has long been running, until every request has its first token.

    sequences : decoding at the start, at independent points of their answers, as Little's law has them. What follows a
    first token runs at the pace of the whole run: the answers outlast it.
    """
    return _Run(requests, model).run_steady(sequences)


class _Run:
    """State of one replay."""

    def __init__(self, requests: Requests, model: ServiceModel) -> None:
        count = len(requests)
        self.requests, self.model = requests, model
        self.isl, self.osl = requests.isl_tokens.tolist(), requests.osl_tokens.tolist()
        self.sent, self.first, self.finished = (np.full(count, NEVER) for _ in range(3))
        self.decode = _Decode(model)
        self.now = 0.0
        self.coming: list[tuple[float, int]] = []
        """(time, request): sent, on their way through the front end."""
        self.waiting: deque[int] = deque()
        self.prefilling: list[tuple[float, int]] = []
        """(time of the first token, request) in the prefill pool of a disaggregated service."""
        self.ready: deque[int] = deque()
        """Prefilled, waiting for a decode slot."""
        self.free_at = [0.0] * model.prefill_workers
        self.next_look_s = 0.0
        self.gathering_since: float | None = None
        self.left = count
        self.unsent = iter(range(count))

    def run(self) -> Replay:
        first = len(self.isl) if self.requests.arrival_s is not None else min(self.requests.concurrency, len(self.isl))
        for _ in range(first):
            self._send_next()
        while self.left:
            self._one_event()
        return Replay(self.sent, self.first, self.finished, self.requests.osl_tokens)

    def run_steady(self, sequences: int) -> Replay:
        """From a running service until every request has its first token."""
        mean_osl = float(self.requests.osl_tokens.mean())
        left = [(mean_osl * (i + 0.5) / sequences, BACKGROUND) for i in range(sequences)]
        self.decode.running = left  # ascending, so a heap
        for _ in range(len(self.isl)):
            self._send_next()
        awaited = 0  # requests are admitted in order, so the last one's first token is the last
        while awaited < len(self.isl):
            self._one_event()
            while awaited < len(self.isl) and self.first[awaited] < NEVER:
                awaited += 1
        pace_s = self.now / self.decode.clock if self.decode.clock else self.decode.step_s()
        osl = self.requests.osl_tokens
        return Replay(self.sent, self.first, self.first + np.maximum(osl - 1, 0) * pace_s, osl)

    def _send_next(self) -> None:
        request = next(self.unsent, None)
        if request is None:
            return
        arrivals = self.requests.arrival_s
        self.sent[request] = self.now if arrivals is None else float(arrivals[request])
        heapq.heappush(self.coming, (float(self.sent[request]) + self.model.frontend_s, request))

    def _one_event(self) -> None:
        self._admit()
        finish_s = self.now + self.decode.next_finish_s()
        options = [finish_s]
        if self.coming:
            options.append(self.coming[0][0])
        if self.prefilling:
            options.append(self.prefilling[0][0])
        if self.waiting:
            options.append(self._next_chance_s())
        until = max(min(options), self.now)
        if until == finish_s:  # exactly: late in a long trace, rounding of seconds is more than a token's last bit
            self.decode.clock = self.decode.running[0][0]
        else:
            self.decode.advance(until - self.now)
        self.now = until
        self._finish()
        while self.coming and self.coming[0][0] <= self.now:
            self.waiting.append(heapq.heappop(self.coming)[1])
            self._round_up_next_look()
        while self.prefilling and self.prefilling[0][0] <= self.now:
            self.ready.append(heapq.heappop(self.prefilling)[1])

    def _next_chance_s(self) -> float:
        """When a waiting prompt may be looked at next."""
        if self.model.disaggregated:
            return max(min(self.free_at), self.now)
        if len(self.decode.running) >= self.model.decode_slots:
            return NEVER
        chance = self.next_look_s
        if self.gathering_since is not None:
            chance = max(chance, self.gathering_since + self.model.gather_steps * self.decode.step_s())
        return chance

    def _round_up_next_look(self) -> None:
        """The engine looks every so many steps whether or not anything waits: a prompt comes at any phase of that."""
        period = self.model.admission_interval_steps * self.decode.step_s()
        if self.decode.running and self.model.admission_interval_steps > 1 and self.now > self.next_look_s:
            self.next_look_s += math.ceil((self.now - self.next_look_s) / period) * period

    def _finish(self) -> None:
        running = self.decode.running
        while running and running[0][0] <= self.decode.clock + TOKEN_ROUNDING:
            request = heapq.heappop(running)[1]
            if request == BACKGROUND:
                continue
            self.finished[request] = self.now
            self.left -= 1
            if self.requests.arrival_s is None:
                self._send_next()

    def _admit(self) -> None:
        if self.model.disaggregated:
            self._admit_apart()
            while self.ready and len(self.decode.running) < self.model.decode_slots:
                request = self.ready.popleft()
                self.decode.start(request, self.osl[request])
        elif self.waiting and (self.now >= self.next_look_s - 1e-12 or not self.decode.running):
            self._admit_together()

    def _admit_apart(self) -> None:
        """Idle prefill workers take the prompts that fit their step."""
        for worker, free in enumerate(self.free_at):
            if not self.waiting:
                return
            if free > self.now:
                continue
            batch, busy, mean = self._next_batch(len(self.waiting))
            done = self.now + self.model.prefill_s(busy, mean)
            self.free_at[worker] = done
            for request in batch:
                self.first[request] = done + self.model.transfer_s
                heapq.heappush(self.prefilling, (done + self.model.transfer_s, request))

    def _admit_together(self) -> None:
        """An aggregated engine runs one prefill step; running sequences wait."""
        model, decode = self.model, self.decode
        room = int(min(model.decode_slots - len(decode.running), len(self.waiting)))
        if room <= 0:
            return
        if model.gather_steps and decode.running and len(self.waiting) < model.prefill_ranks:
            if self.gathering_since is None:
                self.gathering_since = self.now
            if self.now < self.gathering_since + model.gather_steps * decode.step_s() - 1e-12:
                return
        self.gathering_since = None
        batch, busy, mean = self._next_batch(room)
        step_s = decode.step_s() if decode.running else 0.0
        self.now += model.prefill_extra_s(busy, mean, step_s)
        for request in batch:
            self.first[request] = self.now
            decode.start(request, self.osl[request])
        self.next_look_s = self.now + model.admission_interval_steps * decode.step_s()
        if self.waiting and len(decode.running) < model.decode_slots:  # seen already: no new look; but slots free up in steps
            self.next_look_s = self.now

    def _next_batch(self, room: int) -> tuple[list[int], float, float]:
        """Prompts in order, dealt to the emptiest rank while it stays inside its budget; a longer prompt goes alone.

        Also returns tokens of the busiest rank and mean per rank.
        """
        batch: list[int] = []
        loads = [0.0] * self.model.prefill_ranks
        while self.waiting and len(batch) < room:
            rank = loads.index(min(loads))
            tokens = self.isl[self.waiting[0]]
            if batch and loads[rank] + tokens > self.model.prefill_tokens:
                break
            loads[rank] += tokens
            batch.append(self.waiting.popleft())
        return batch, max(loads), sum(loads) / len(loads)
