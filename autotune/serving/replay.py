"""Replaying requests through the pools of a service: arrivals, front end, prompts, hand-over, answers, in order of time.

The clock jumps from event to event; what a step holds is the policy of its engine (`policies.py`), when it ends its
worker's (`worker.py`).
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autotune.serving.policies import Dealing
from autotune.serving.requests import Requests
from autotune.serving.service import PoolModel, ServiceModel
from autotune.serving.worker import BACKGROUND, ServedRequest, Worker
from cost_models.arrays import Floats

NEVER = float("inf")
BUSIEST = 0.9
"""Share of the front end that answers may take."""
SENT, READY, HANDED, WAKE = range(4)
"""Kinds of events: of one instant, requests come first and steps are composed last."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What each request saw, (n,) each."""

    sent_s: Floats
    first_token_s: Floats
    finished_s: Floats
    osl_tokens: Floats
    preempted: int = 0
    """Times that a sequence lost its KV cache to others and was computed again."""

    @property
    def ttft_s(self) -> Floats:
        return self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """Mean time between tokens of each request after its first."""
        return (self.finished_s - self.first_token_s) / np.maximum(self.osl_tokens - 1, 1)

    def settled(self, skipped: int) -> Replay:
        """Requests that neither the start nor the end of a closed loop shows in: without the first `skipped`, and without
        those that were still answered when no more were sent."""
        index = np.arange(len(self.sent_s))
        kept = (index >= skipped) & (self.finished_s <= self.sent_s.max())
        if not kept.any():
            return self
        sent_s, first_s, finished_s, osl = (
            self.sent_s[kept],
            self.first_token_s[kept],
            self.finished_s[kept],
            self.osl_tokens[kept],
        )
        return Replay(sent_s, first_s, finished_s, osl, self.preempted)

    @property
    def finished_tokens_per_s(self) -> float:
        """Of answers over the time in which they end: the rate of a closed loop that has settled."""
        if len(self.finished_s) < 2:
            return self.output_tokens_per_s
        ends = np.sort(self.finished_s)
        return float(self.osl_tokens.mean() * (len(ends) - 1) / max(ends[-1] - ends[0], 1e-12))

    @property
    def output_tokens_per_s(self) -> float:
        return float(self.osl_tokens.sum() / (self.finished_s.max() - self.sent_s.min()))


def replay(requests: Requests, model: ServiceModel) -> Replay:
    """Run all requests to their end."""
    return Run(requests, model).to_the_end()


def replay_steady(requests: Requests, model: ServiceModel, sequences: int) -> Replay:
    """Run an open loop on a service that has long been running, until every request has its first token.

    sequences : decoding at the start, at independent points of their answers, as Little's law has them. What follows a
    first token runs at the pace of the whole run: the answers outlast it.
    """
    return Run(requests, model).from_steady(sequences)


class Run:
    """State of one replay."""

    def __init__(self, requests: Requests, model: ServiceModel) -> None:
        self.requests, self.model = requests, model
        self.sent, self.first, self.finished = ([NEVER] * len(requests) for _ in range(3))
        self.jobs = jobs_of(requests, model.decode.tokens_per_step)
        self.events: list[tuple[float, int, int, int, Worker | None]] = []
        """(time, kind, order, request, worker)."""
        self.order = 0
        self.left = self.unstarted = len(requests)
        self.unsent = 0
        self.frontend_free_s = [0.0] * model.frontend.servers
        self.arrivals: list[float] | None = None if requests.arrival_s is None else requests.arrival_s.tolist()
        self.steps_gained = 0
        apart = model.prefill is not None
        self.decoders = self._workers(model.decode, "decode" if apart else "serve")
        self.prefillers = self._workers(model.prefill, "prefill") if model.prefill else self.decoders
        self.routers = routers_of(model)
        self.decoder_of: dict[int, tuple[Worker, int | None]] = {}
        """Decode worker of a request of a disaggregated service, and its rank where that is chosen before the prefill."""
        self.reserved = {worker: [0] * model.decode.ranks for worker in self.decoders}
        self.pending = {worker: [deque[int]() for _ in range(model.decode.ranks)] for worker in self.decoders}
        """Requests that wait for a decode slot before they are prefilled."""
        self.link_free_s: dict[tuple[Worker, int], float] = {}

    def _workers(self, pool: PoolModel, role: str) -> list[Worker]:
        policy = self.model.policy
        dealing = {"serve": policy.deals, "prefill": policy.deals_prefill, "decode": policy.deals_decode}[role]
        return [Worker(pool, policy, self.jobs, self, dealer(dealing, number), role) for number in range(pool.workers)]

    def to_the_end(self) -> Replay:
        self._send_first()
        while self.left:
            self._one_event()
        return self._result(np.array(self.finished))

    def from_steady(self, sequences: int) -> Replay:
        """From a running service until every request has its first token."""
        self._seed(sequences)
        self._send_first()
        now = 0.0
        while self.unstarted:
            now = self._one_event()
        pace_s = self._pace_s(now)
        osl = self.requests.osl_tokens
        first = np.array(self.first)
        return self._result(first + np.maximum(osl - 1, 0) * pace_s)

    def _seed(self, sequences: int) -> None:
        """Sequences that already run when the first request comes."""
        mean_steps = float(np.mean([job.steps for job in self.jobs])) + 1
        context = float(np.mean([job.context for job in self.jobs])) + mean_steps / 2
        for number, worker in enumerate(self.decoders):
            mine = np.arange(number, sequences, len(self.decoders))
            worker.seed((mean_steps * (mine + 0.5) / max(sequences, 1)).astype(np.int64), context)
            if len(mine):
                self.reserved[worker] = list(worker.decoding)
                worker.wakes_at = 0.0
                self.wake(worker, 0.0)

    def _pace_s(self, now: float) -> float:
        """Seconds between two tokens of a running sequence, over the run."""
        steps = sum(worker.step - sum(worker.stalls) / len(worker.stalls) for worker in self.decoders) / len(self.decoders)
        if steps <= 0:
            return self.model.decode.decode_s(1) / self.model.decode.tokens_per_step
        return now / steps / self.model.decode.tokens_per_step

    def _result(self, finished: Floats) -> Replay:
        preempted = sum(worker.preempted for worker in self.decoders)
        first = np.array(self.first)
        return Replay(np.array(self.sent), first, np.maximum(finished, first), self.requests.osl_tokens, preempted)

    def _push(self, at: float, kind: int, request: int, worker: Worker | None = None) -> None:
        self.order += 1
        heapq.heappush(self.events, (at, kind, self.order, request, worker))

    def _one_event(self) -> float:
        now, kind, _, request, worker = heapq.heappop(self.events)
        if kind == WAKE:
            assert worker is not None
            worker.wake(now)
        elif kind == HANDED:
            decoder, rank = self.decoder_of[request]
            decoder.deliver(request, now, rank)
        elif kind == SENT:
            self._send(now)
        else:
            self._ready(request, now)
        return now

    def _send_first(self) -> None:
        if self.arrivals is None:
            for _ in range(min(self.requests.concurrency, len(self.jobs))):
                self._send(0.0)
        else:
            self._push(self.arrivals[0], SENT, 0)

    def _send(self, now: float) -> None:
        """The next request sets out; of an open loop the one after it is due."""
        if self.unsent == len(self.jobs):
            return
        request, frontend = self.unsent, self.model.frontend
        self.unsent += 1
        if self.arrivals is not None and self.unsent < len(self.arrivals):
            self._push(self.arrivals[self.unsent], SENT, self.unsent)
        self.sent[request] = now
        work_s = frontend.prompt_s + frontend.token_s * self.jobs[request].context
        if work_s and frontend.output_s and self.model.prefill is None:
            work_s /= 1 - min(self._tokens_per_s() * frontend.output_s, BUSIEST)
        server = request % frontend.servers
        ready_s = max(self.frontend_free_s[server], now) + work_s
        self.frontend_free_s[server] = ready_s
        self._push(ready_s + frontend.fixed_s, READY, request)

    def _tokens_per_s(self) -> float:
        gained = sum(worker.running / worker.step_s for worker in self.decoders if worker.strides and worker.step_s)
        return gained * self.model.decode.tokens_per_step

    def _streaming_s(self) -> float:
        """What one of a step's tokens waits for the others of its engine to be streamed, on average."""
        return self.model.frontend.output_s * sum([worker.running for worker in self.decoders]) / len(self.decoders) / 2

    def _ready(self, request: int, now: float) -> None:
        """Through the front end: to an engine, or to a prefill worker and, in time, a decode worker."""
        decoder = self.decoders[self._router(request).next_decoder()]
        if self.model.prefill is None:
            decoder.deliver(request, now)
            return
        rank = decoder.deal(decoder) if self.model.policy.slot_first else None
        self.decoder_of[request] = decoder, rank
        if rank is not None:
            if self.reserved[decoder][rank] >= self.model.decode.slots:
                self.pending[decoder][rank].append(request)
                return
            self.reserved[decoder][rank] += 1
        self._prefill(request, now)

    def _router(self, request: int) -> TurnTaker:
        """A proxy in front of several takes turns."""
        return self.routers[request % len(self.routers)]

    def _prefill(self, request: int, now: float) -> None:
        self.prefillers[self._router(request).next_prefiller()].deliver(request, now)

    def wake(self, worker: Worker, at: float) -> None:
        """A worker's segment ends at that time."""
        self._push(at, WAKE, BACKGROUND, worker)

    def first_token(self, request: int, now: float) -> None:
        """A client sees its first token; once, also of a request that is preempted and computed again."""
        if self.first[request] == NEVER:
            self.first[request] = now + self._streaming_s()
            self.unstarted -= 1

    def prefilled(self, request: int, now: float, worker: Worker, sender: int) -> None:
        """A prompt's KV cache goes to its decode rank; the links of either end carry one after the other."""
        handover, (decoder, rank) = self.model.handover, self.decoder_of[request]
        where = decoder, request % decoder.pool.ranks if rank is None else rank
        ends = ((worker, sender), handover.sent_token_s), (where, handover.token_s)
        done_s = now
        for place, token_s in ends:
            busy_s = max(self.link_free_s.get(place, 0.0), now) + token_s * self.jobs[request].context
            self.link_free_s[place] = busy_s
            done_s = max(done_s, busy_s)
        self._push(done_s + handover.start_s, HANDED, request)

    def answered(self, request: int, now: float) -> None:
        """A sequence has all its tokens; in a closed loop the next request sets out."""
        if request != BACKGROUND:
            self.finished[request] = now + self._streaming_s()
            self.left -= 1
        if self.arrivals is None:
            self._push(now + self._streaming_s(), SENT, request)
        if self.model.prefill is not None and self.model.policy.slot_first:
            self._free_slot(request, now)

    def _free_slot(self, request: int, now: float) -> None:
        decoder, rank = self.decoder_of.pop(request) if request != BACKGROUND else self._background_slot()
        assert rank is not None
        self.reserved[decoder][rank] -= 1
        queue = self.pending[decoder][rank]
        if queue and self.reserved[decoder][rank] < self.model.decode.slots:
            self.reserved[decoder][rank] += 1
            self._prefill(queue.popleft(), now)

    def _background_slot(self) -> tuple[Worker, int | None]:
        """Where more slots are reserved than requests of this run hold."""
        places = ((worker, rank) for worker in self.decoders for rank in range(worker.pool.ranks))
        return max(places, key=lambda place: self.reserved[place[0]][place[1]] - place[0].decoding[place[1]])


class TurnTaker:
    """One process that deals requests to the workers of each pool in turn; decoders, prefillers : workers in its order."""

    def __init__(self, decoders: list[int], prefillers: list[int]) -> None:
        self.decoders, self.prefillers = itertools.cycle(decoders), itertools.cycle(prefillers)

    def next_decoder(self) -> int:
        return next(self.decoders)

    def next_prefiller(self) -> int:
        return next(self.prefillers)


def routers_of(model: ServiceModel) -> list[TurnTaker]:
    """The first goes through the workers in their order, others in orders of their own: each as it came to know them.

    Dynamo's routers (lib/runtime, RouterMode round robin) count what they dealt themselves.
    """
    chance = random.Random(0)  # noqa: S311
    pools = [list(range(model.decode.workers)), list(range(model.prefill.workers if model.prefill else 1))]
    others = (TurnTaker(*(chance.sample(pool, len(pool)) for pool in pools)) for _ in range(1, model.routers))
    return [TurnTaker(*pools), *others]


def jobs_of(requests: Requests, tokens_per_step: float) -> list[ServedRequest]:
    """Requests as workers see them."""
    steps = np.ceil((requests.osl_tokens - 1) / tokens_per_step).astype(int)
    prefix = np.zeros(len(steps)) if requests.prefix_tokens is None else requests.prefix_tokens
    context = (requests.isl_tokens + prefix).tolist()
    columns = requests.isl_tokens.tolist(), prefix.tolist(), steps.tolist(), context, (steps * tokens_per_step).tolist(), context
    return [ServedRequest(*values) for values in zip(*columns, strict=True)]


def emptiest(worker: Worker) -> int:
    """The first of the ranks with the fewest requests."""
    return worker.assigned.index(min(worker.assigned))


def lightest(worker: Worker) -> int:
    """The rank whose requests have the fewest prompt tokens, of those with room below an even share of the requests.

    TensorRT-LLM, `_balance_requests_across_ranks` of pyexecutor/executor_request_queue.py.
    """
    assigned = worker.assigned
    even = -(-(sum(assigned) + 1) // len(assigned))
    share = max(even, *assigned)
    below = (rank for rank, count in enumerate(assigned) if count < share)
    return min(below, key=lambda rank: (worker.prompt_tokens[rank], assigned[rank]))


def dealer(dealing: Dealing, number: int) -> Callable[[Worker], int]:
    """Chooses a rank of a worker for a request that reaches it; `number` of the worker makes chance repeatable."""
    if dealing == "balanced":
        return emptiest
    if dealing == "by_tokens":
        return lightest
    if dealing == "random":
        chance = random.Random(number)  # noqa: S311
        return lambda worker: chance.randrange(worker.pool.ranks)
    turns = [0]

    def in_turn(worker: Worker) -> int:
        turns[0] = (turns[0] + 1) % worker.pool.ranks
        return turns[0] - 1 if turns[0] else worker.pool.ranks - 1

    return in_turn
