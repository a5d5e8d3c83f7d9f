"""One engine of a replay: whole steps, composed by the engine's policy.

Steps that only decode are all alike until something happens, so they are taken in one stride: the replay's events are
requests, not tokens. What cannot happen inside a step does not: a newcomer waits for the end of the steps that were
composed before it came.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autotune.serving.policies import Policy
from autotune.serving.service import PoolModel

LAST = 2**62
"""A step that is never reached."""
BACKGROUND = -1
"""A sequence that ran before the first request came."""


class Listener(Protocol):
    """What a worker tells the run."""

    def first_token(self, request: int, now: float) -> None: ...
    def prefilled(self, request: int, now: float, worker: Worker, rank: int) -> None: ...
    def answered(self, request: int, now: float) -> None: ...
    def wake(self, worker: Worker, at: float) -> None: ...


@dataclass(slots=True)
class ServedRequest:
    """A request as the workers see it."""

    left: float
    """Prompt tokens to be computed."""
    prefix: float
    """Tokens before them that are in the KV cache."""
    steps: int
    """Decode steps of its answer after the first token."""
    context: float
    """Prompt tokens it holds when prefilled, cached ones too."""
    answer: float
    """Tokens that those steps add to the KV cache."""
    prompt: float
    """Tokens of its prompt, whatever is computed again."""
    freed_at: float = -math.inf
    """Tokens that its rank had handed out when it was preempted; minus infinity when nothing of it may be left."""
    ends: int = -1
    """Index of the step at whose end it is answered, less the steps its rank had stalled; -1 when not running."""


class Worker:
    """Ranks that step together; `role` says what becomes of a finished prompt."""

    def __init__(
        self,
        pool: PoolModel,
        policy: Policy,
        jobs: list[ServedRequest],
        listener: Listener,
        deal: Callable[[Worker], int],
        role: str,
    ) -> None:
        ranks = range(pool.ranks)
        self.pool, self.policy, self.jobs, self.listener, self.deal = pool, policy, jobs, listener, deal
        self.role = role
        self.queues: list[deque[tuple[int, int]]] = [deque() for _ in ranks]
        """(step from which it may be taken, request) of each rank, in order."""
        self.heaps: list[list[tuple[int, int]]] = [[] for _ in ranks]
        """(ends, request) of the requests that decode on each rank; preempted requests stay until they surface."""
        self.background: list[list[int]] = [[] for _ in ranks]
        """Steps at whose end sequences finish that ran before the first request came, the soonest last."""
        self.newest: list[list[int]] = [[] for _ in ranks]
        self.assigned = [0] * pool.ranks
        """Requests of each rank: waiting, being prefilled, decoding."""
        self.prompt_tokens = [0.0] * pool.ranks
        """Of their prompts."""
        self.decoding = [0] * pool.ranks
        self.running = self.queued = 0
        """Sums over the ranks."""
        self.earliest = 0
        """No answer ends before this step; a bound, made exact when it is reached."""
        self.bounded = pool.kv_tokens < math.inf
        self.partly = [0] * pool.ranks
        """Prompts begun and not finished."""
        self.held = [0.0] * pool.ranks
        """KV tokens in use."""
        self.handed_out = [0.0] * pool.ranks
        """KV tokens so far: what is written over is counted again."""
        self.unfilled = (policy.block_tokens - 1) / 2
        """Tokens of its last block that a sequence holds and does not use, on average."""
        self.promised = [0.0] * pool.ranks
        """KV tokens set aside for what was let in."""
        self.stalls = [0] * pool.ranks
        """Steps in which a rank's running sequences gained no token."""
        self.step = 0
        """Index of the running step; of the next where none runs."""
        self.composing = policy.runs_ahead if role == "decode" and policy.first_seen == "when_composed" else 0
        """Steps that a sequence is part of before it decodes: what it enters is composed while they run."""
        self.ahead = (policy.ahead_apart if role == "prefill" else policy.runs_ahead) - self.composing
        self.delay = self.ahead + (policy.handover_steps if role == "decode" else 0)
        """Steps from the one at whose start the engine looks to the first that may hold what it sees."""
        self.looked = 0
        """Step at whose start the engine began to count steps until it looks again."""
        self.prompting = False
        """Whether the running step holds prompts."""
        self.uncompiled_s = pool.first_cut_s
        """What the first step with a later piece of a prompt is still to take more."""
        self.compiling_s = 0.0
        """Of the running step: before its kernels are launched."""
        self.launched_s = -math.inf
        """When the newest step of prompts has been launched: until then the one after it is not composed."""
        self.start_s = self.step_s = 0.0
        self.strides = 0
        """Steps of the running segment; 0 idle."""
        self.wakes_at = math.inf
        self.finishing: list[tuple[int, int]] = []
        """(rank, request) whose prompts end with the running step."""
        self.stalled: list[int] = []
        self.entered: list[int] = []
        """Requests whose first token comes with the running step, prefilled elsewhere."""
        self.counted_from = 0
        """Step before which the engine began to count how long ranks may wait for prompts of the others."""
        self.gathering = False
        """Whether prompts wait until every rank has one."""
        self.seeded = 0.0
        self.preempted = 0

    def seed(self, ends: NDArray[np.int64], context: float) -> None:
        """Sequences that already run: ends : the step at whose end each finishes, in order."""
        self.seeded = context
        self.running += len(ends)
        for rank in range(self.pool.ranks):
            mine = ends[rank :: self.pool.ranks]
            self.background[rank] = mine[::-1].tolist()
            self.assigned[rank] += len(mine)
            self.decoding[rank] += len(mine)
            self.held[rank] += context * len(mine)
            self.promised[rank] += context * len(mine)

    def deliver(self, request: int, now: float, rank: int | None = None) -> None:
        """A request arrives; it may join the first step that is composed after the engine looked."""
        if rank is None:
            rank = self.deal(self)
        self.assigned[rank] += 1
        self.prompt_tokens[rank] += self.jobs[request].prompt
        self.queued += 1
        if not self.strides:
            self.queues[rank].append((self.step, request))
            if self.wakes_at > now:  # requests of the same instant are looked at together
                self.wakes_at = now
                self.listener.wake(self, now)
            return
        inside = min(int((now - self.start_s) / self.step_s), self.strides - 1) if self.step_s else self.strides - 1
        eligible = self.step + self.ahead if now < self.launched_s else self._eligible(self.step + inside)
        self.queues[rank].append((eligible, request))
        if self.strides > 1 and self._room(rank, request):
            self._cut(max(eligible - self.step, inside + 1))

    def _eligible(self, current: int) -> int:
        """First step that may hold what comes during step `current`."""
        every = self.pool.look_steps
        look = self.looked - (self.looked - current - 1) // every * every
        return look + self.delay

    def _launch_s(self) -> float:
        """How long the running step of prompts is being launched."""
        return min(self.compiling_s + self.pool.launch_s, self.step_s)

    def _look(self) -> None:
        """A step of prompts has been composed: before the next is, the engine looks, whoever has come by then."""
        self.looked = self.step
        soonest = self.step + self.ahead
        for queue in self.queues:
            if queue and queue[-1][0] > soonest:
                waiting = [(min(eligible, soonest), request) for eligible, request in queue]
                queue.clear()
                queue.extend(waiting)

    def _cut(self, strides: int) -> None:
        if strides < self.strides:
            self.strides = strides
            self.wakes_at = self.start_s + strides * self.step_s
            self.listener.wake(self, self.wakes_at)

    def _room(self, rank: int, request: int) -> bool:
        """Whether a rank's slots and KV cache take one more."""
        inside = self.decoding[rank] + self.partly[rank]
        if inside >= self.pool.slots:
            return False
        if not self.bounded or not inside:
            return True
        return max(self.held[rank], self.promised[rank]) + self._promise(self.jobs[request]) <= self.pool.kv_tokens

    def wake(self, now: float) -> None:
        """The running segment ends."""
        if now < self.wakes_at:  # it was cut: an earlier event stands for it
            return
        done = self.strides
        self.step += done
        self.strides = 0
        self.wakes_at = math.inf
        if self.stalled or self.bounded:
            self._grow(done)
        if self.entered:
            for request in self.entered:
                self.listener.first_token(request, now)
            self.entered.clear()
        ran_on_s = self.step_s - self._launch_s()
        computed, self.finishing = self.finishing, []
        self._finish_prompts(computed)
        if self.step > self.earliest:
            self._finish_answers(now)
        self._begin(now)
        if computed:
            self._tell(computed, now + self._unseen_s(ran_on_s))

    def _grow(self, steps: int) -> None:
        for rank in self.stalled:
            self.stalls[rank] += 1
        if self.bounded:
            for rank, count in enumerate(self.decoding):
                if count and rank not in self.stalled:
                    gained = count * steps * self.pool.tokens_per_step
                    self.held[rank] += gained
                    self.handed_out[rank] += gained
        self.stalled.clear()

    def _finish_prompts(self, computed: list[tuple[int, int]]) -> None:
        for rank, request in computed:
            self.partly[rank] -= 1
            if self.role == "prefill":
                self.assigned[rank] -= 1
                self.prompt_tokens[rank] -= self.jobs[request].prompt
                self._release(rank, request)
            else:
                self._run_on(rank, request, self.step - 1 + self.jobs[request].steps)

    def _unseen_s(self, ran_on_s: float) -> float:
        """How long what a step of prompts computed waits to be looked at: the one after it is launched first.

        ran_on_s : what the step ran on for after it was launched itself.
        """
        if not (self.policy.results_wait and self.prompting and self.strides):
            return 0.0
        return max(self._launch_s() - ran_on_s, 0.0)

    def _tell(self, computed: list[tuple[int, int]], now: float) -> None:
        for rank, request in computed:
            if self.role == "prefill":
                self.listener.prefilled(request, now, self, rank)
            else:
                self.listener.first_token(request, now)

    def _run_on(self, rank: int, request: int, last_step: int) -> None:
        """A request decodes until the end of step `last_step`."""
        job = self.jobs[request]
        job.ends = last_step - self.stalls[rank]
        heapq.heappush(self.heaps[rank], (job.ends, request))
        if self.bounded:
            self.newest[rank].append(request)
        self.decoding[rank] += 1
        self.running += 1
        if last_step < self.earliest:
            self.earliest = last_step

    def _finish_answers(self, now: float) -> None:
        earliest = LAST
        for rank, heap in enumerate(self.heaps):
            stalled = self.stalls[rank]
            over = self.step - stalled  # what ends before this step of the rank's own has ended
            background = self.background[rank]
            while background and background[-1] < over:
                self.held[rank] -= self.seeded + (background.pop() + 1) * self.pool.tokens_per_step
                self.promised[rank] -= self.seeded
                self._leave(rank, BACKGROUND, now)
            while heap and heap[0][0] < over:
                ends, request = heapq.heappop(heap)
                if self.jobs[request].ends == ends:  # else it was preempted
                    self.jobs[request].ends = -1
                    self._release(rank, request)
                    self._leave(rank, request, now)
            if heap and heap[0][0] + stalled < earliest:
                earliest = heap[0][0] + stalled
            if background and background[-1] + stalled < earliest:
                earliest = background[-1] + stalled
        self.earliest = earliest

    def _leave(self, rank: int, request: int, now: float) -> None:
        """An answered sequence is no more in the batch."""
        self.assigned[rank] -= 1
        if request != BACKGROUND:
            self.prompt_tokens[rank] -= self.jobs[request].prompt
        self.decoding[rank] -= 1
        self.running -= 1
        self.listener.answered(request, now)

    def _release(self, rank: int, request: int) -> None:
        if not self.bounded:
            return
        job = self.jobs[request]
        held = job.context + (0.0 if self.role == "prefill" else job.answer)
        self.held[rank] = max(self.held[rank] - held - self.unfilled, 0.0)
        self.promised[rank] = max(self.promised[rank] - self._promise(job), 0.0)

    def _promise(self, job: ServedRequest) -> float:
        """KV tokens that are set aside for a sequence when it is let in."""
        return job.context + self.policy.reserve * job.answer + self.unfilled

    def _take_in(self, rank: int, job: ServedRequest) -> None:
        """A sequence gets the KV cache of its context."""
        if self.bounded:
            self.held[rank] += job.context + self.unfilled
            self.handed_out[rank] += job.context + self.unfilled
            self.promised[rank] += self._promise(job)

    def _begin(self, now: float) -> None:
        """Compose the next step, or as many as are alike."""
        self.start_s = now
        taken: list[list[tuple[int, float]]] = []
        if self.bounded:
            self._preempt()
        if self.queued:
            if self.role == "decode":
                self._enter(now)
            taken = self._prompts()
        self.prompting = bool(taken)
        if taken:
            self.step_s, strides = self._prompt_step_s(taken), 1
            self.launched_s = now + self._launch_s()
            if self.policy.polls:
                self._look()
        elif self.running:
            self.step_s = self.pool.decode_s(max(self.decoding))
            strides = 1 if self.entered or self.stalled else self._alike()  # what has just come in is seen to after one step
        else:
            return
        self.strides = strides
        self.wakes_at = now + strides * self.step_s
        self.listener.wake(self, self.wakes_at)

    def _alike(self) -> int:
        """Steps until something changes: an answer ends, a waiting request may be taken, the KV cache is full."""
        strides = self.earliest - self.step + 1
        if self.queued:
            for rank, queue in enumerate(self.queues):
                if queue and queue[0][0] > self.step and self._room(rank, queue[0][1]):
                    strides = min(strides, queue[0][0] - self.step)
        if self.gathering:
            strides = min(strides, self._patience())
        if self.bounded:
            for rank, count in enumerate(self.decoding):
                if count:
                    room = (self.pool.kv_tokens - self.held[rank]) / (count * self.pool.tokens_per_step)
                    strides = min(strides, max(int(room), 1))
        return max(strides, 1)

    def _enter(self, now: float) -> None:
        """Sequences prefilled elsewhere join the batch."""
        idle = not self.running
        for rank, queue in enumerate(self.queues):
            while queue and (queue[0][0] <= self.step or idle) and self._room(rank, queue[0][1]):
                if self.jobs[queue[0][1]].left > 0:  # preempted: it is computed again
                    break
                request = queue.popleft()[1]
                self.queued -= 1
                self._take_in(rank, self.jobs[request])
                self._enter_one(rank, request, now, 0 if idle else self.composing)
                if self.policy.entry_stalls and self.pool.ranks > 1 and self.stalled[-1:] != [rank]:
                    self.stalled.append(rank)

    def _enter_one(self, rank: int, request: int, now: float, composing: int) -> None:
        job, seen = self.jobs[request], self.policy.first_seen
        last = self.step + composing + job.steps - (seen != "by_first_step")
        if seen in ("at_entry", "when_composed"):
            self.listener.first_token(request, now)
        else:
            self.entered.append(request)
            last = max(last, self.step)
        self._run_on(rank, request, last)

    def _prompts(self) -> list[list[tuple[int, float]]]:
        """What each rank's prompts give to the next step: (request, tokens); empty where no rank has any."""
        if self.role == "decode" and not self.preempted:  # all were computed elsewhere
            return []
        step = self.step if self.running or self._due() else LAST
        ready = [
            bool(queue) and self._computes(queue[0][1]) and (queue[0][0] <= step or self.partly[rank] > 0)
            and (self.partly[rank] > 0 or self._room(rank, queue[0][1]))
            for rank, queue in enumerate(self.queues)
        ]  # fmt: skip
        if not any(ready) or self._gathers(ready):
            return []
        return [self._pieces(rank, step) if ready[rank] else [] for rank in range(self.pool.ranks)]

    def _computes(self, request: int) -> bool:
        """Whether a waiting request is a prompt to this worker: in a decode pool only what it has preempted."""
        return self.role != "decode" or self.jobs[request].left > 0

    def _due(self) -> bool:
        """Whether a step was composed ahead, so that who came later is not in it; an idle engine takes whoever comes."""
        due = zip(self.queues, self.partly, strict=True)
        return any(bool(queue) and (partly > 0 or queue[0][0] <= self.step) for queue, partly in due)

    def _gathers(self, ready: list[bool]) -> bool:
        """Whether prompts wait until every rank has one.

        TensorRT-LLM counts steps whether or not a prompt waits (`_balance_adp_requests` of pyexecutor/py_executor.py), so who
        comes to a busy engine waits for half of `gather_steps` on average. Nobody waits for a rank that has prompts only.
        """
        self.gathering = False
        if not self.pool.gather_steps or any(self.partly):
            return False
        only_prompts = any(has and not decoding for has, decoding in zip(ready, self.decoding, strict=True))
        if all(ready) or only_prompts:
            self.counted_from = self.step
            return False
        self.gathering = self._patience() < self.pool.gather_steps
        return self.gathering

    def _patience(self) -> int:
        """Steps until prompts wait no longer, counted from those of the step before; as many as they wait at most: none."""
        return self.pool.gather_steps - (self.step - self.counted_from) % self.pool.gather_steps

    def _pieces(self, rank: int, step: int) -> list[tuple[int, float]]:
        queue, policy = self.queues[rank], self.policy
        budget = max(policy.budget(self.pool.budget_tokens, self.decoding[rank]), 1.0)
        taken: list[tuple[int, float]] = []
        while queue and budget > 0:
            eligible, request = queue[0]
            job = self.jobs[request]
            begun = bool(self.partly[rank]) and not taken
            if not begun and (eligible > step or not self._computes(request) or not self._room(rank, request)):
                break
            if not begun and job.freed_at > -math.inf:
                self._reuse(rank, job)
            tokens = policy.piece(job.left, budget, not taken)
            if tokens <= 0:
                break
            if not begun:
                self.partly[rank] += 1
                self._take_in(rank, job)
            taken.append((request, tokens))
            budget -= tokens
            job.left -= tokens
            if job.left > 0:
                break
            queue.popleft()
            self.queued -= 1
            self.finishing.append((rank, request))
        return taken

    def _reuse(self, rank: int, job: ServedRequest) -> None:
        """What others have not written over of a preempted sequence needs not be computed again; its last token was not there."""
        kept = job.context - 1 - (self.handed_out[rank] - job.freed_at)
        if kept > 0:
            job.prefix, job.left = kept, job.context - kept
        job.freed_at = -math.inf

    def _prompt_step_s(self, taken: list[list[tuple[int, float]]]) -> float:
        """Price the step that was composed; ranks whose prompts get a step of their own stall what runs on them."""
        busiest = total = keys = 0.0
        most, later = 0, False
        for rank, pieces in enumerate(taken):
            tokens = attended = 0.0
            cut = False
            for request, count in pieces:
                job = self.jobs[request]
                tokens += count
                attended += count * (job.prefix + count / 2)
                cut = cut or job.prefix > 0
                job.prefix += count
            attended *= self.pool.cut_keys if cut else 1.0
            later = later or cut
            if self.policy.mixes or not pieces:
                tokens += self.decoding[rank]
                most = max(most, self.decoding[rank])
            elif self.decoding[rank]:
                self.stalled.append(rank)
            busiest, total, keys = max(busiest, tokens), total + tokens, max(keys, attended)
        return self._compile_s(later) + self.pool.prompt_s(busiest, total / len(taken), keys, most)

    def _compile_s(self, later: bool) -> float:
        """What a step waits for its kernels to be compiled, once; later : whether it holds a later piece of a prompt."""
        self.compiling_s, self.uncompiled_s = (self.uncompiled_s, 0.0) if later else (0.0, self.uncompiled_s)
        return self.compiling_s

    def _preempt(self) -> None:
        """What the next step would outgrow loses its newest sequences, which go to the head of the queue.

        vLLM V1: `schedule` and `_preempt_request` of v1/core/sched/scheduler.py.
        """
        if max(self.held) + max(self.decoding) * self.pool.tokens_per_step <= self.pool.kv_tokens:
            return
        for rank in range(self.pool.ranks):
            while self._overflows(rank) and self._evict(rank):
                self.preempted += 1

    def _overflows(self, rank: int) -> bool:
        count = self.decoding[rank]
        return count > 1 and self.held[rank] + count * self.pool.tokens_per_step > self.pool.kv_tokens

    def _evict(self, rank: int) -> bool:
        newest = self.newest[rank]
        while newest:
            request = newest.pop()
            if self.jobs[request].ends >= 0:
                self._put_back(rank, request)
                return True
        return False

    def _put_back(self, rank: int, request: int) -> None:
        """A running sequence waits again, with what it has gained as part of its context."""
        job = self.jobs[request]
        kept = self.role == "decode" and self.policy.host_keeps
        gained = job.steps - max(job.ends + self.stalls[rank] - self.step + 1, 0)
        self._release(rank, request)
        self.held[rank] += job.answer - gained * self.pool.tokens_per_step  # what it had not come to hold
        gained += not kept  # computing it again returns a token
        job.context += gained * self.pool.tokens_per_step
        job.answer -= gained * self.pool.tokens_per_step
        job.left, job.prefix, job.steps, job.ends = 0.0 if kept else job.context, 0.0, job.steps - gained, -1
        if self.pool.keeps_freed:
            job.freed_at = self.handed_out[rank]
        self.decoding[rank] -= 1
        self.running -= 1
        self.queued += 1
        self.queues[rank].appendleft((self.step + 1, request))  # a step that preempts takes nobody in
