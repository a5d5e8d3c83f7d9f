"""The replay: timelines of few requests worked by hand for every policy, and the laws that queues obey."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import ProblemError
from autotune.serving.policies import (
    GENERATIONS,
    POLICIES,
    SGLANG,
    TENSORRT_LLM,
    TENSORRT_LLM_OLD,
    VLLM_V1,
    VLLM_V1_ASYNC,
    Policy,
    policy_of,
)
from autotune.serving.replay import replay, replay_steady, routers_of
from autotune.serving.requests import Requests, benchmark_requests, poisson_requests
from autotune.serving.service import Frontend, Handover, PoolModel, ServiceModel

STEP_S = 0.01
PER_TOKEN_S = 1e-4
"""A 1,000-token prompt takes 0.1 s."""
AT_ONCE = dataclasses.replace(VLLM_V1, first_seen="at_entry")
"""Nothing is composed ahead, and a prefilled sequence is seen when it enters the decode batch."""
ALONE = dataclasses.replace(SGLANG, runs_ahead=0, deals_prefill="balanced", deals_decode="balanced", handover_steps=0)
"""Prompts in steps of their own, composed when they start."""


def _pool(**changes) -> PoolModel:
    """Decode steps of 10 ms; steps with prompts 0.1 ms per token of the busiest rank, at least a decode step."""
    plain = PoolModel(
        decode_s=lambda _: STEP_S,
        prompt_s=lambda busiest, _mean, _keys, _decodes: max(PER_TOKEN_S * busiest, STEP_S),
        budget_tokens=1000.0,
    )
    return dataclasses.replace(plain, **changes)


def _together(policy: Policy = AT_ONCE, **changes) -> ServiceModel:
    return ServiceModel(policy, _pool(**changes))


def _apart(policy: Policy = AT_ONCE, prefill: PoolModel | None = None, **changes) -> ServiceModel:
    return ServiceModel(policy, _pool(**changes), prefill or _pool())


def _requests(*entries: tuple[float, float, float]) -> Requests:
    """(sent, input, output) of each."""
    sent, isl, osl = np.array(entries, dtype=float).T
    return Requests(isl, osl, sent)


def test_a_lone_request_waits_for_nothing():
    model = dataclasses.replace(_apart(), frontend=Frontend(fixed_s=0.06), handover=Handover(start_s=0.03, token_s=1e-5))
    result = replay(_requests((0, 1000, 100)), model)
    assert result.ttft_s == pytest.approx([0.06 + 0.1 + 0.03 + 0.01])
    assert result.tpot_s == pytest.approx([STEP_S])
    assert result.finished_s == pytest.approx([0.2 + 99 * STEP_S])


def test_rounding_late_in_a_long_trace_stops_nothing():
    sparse = poisson_requests(1000, 2, count=3000, rate_per_s=1e-4)  # a year
    result = replay(sparse, _apart(decode_s=lambda _: 0.0123))
    assert result.tpot_s == pytest.approx(np.full(3000, 0.0123), rel=1e-4)


FOUR = ((0.0, 1000, 5), (0.0, 1000, 5), (0.0, 500, 5), (0.115, 500, 5))
"""Two prompts of a full budget, one of half, and one that comes later; answers of five tokens."""


def test_vllm_shares_the_budget_with_running_sequences_and_cuts_the_prompt_that_does_not_fit():
    # step 1, until 0.100: A whole (1,000 tokens)
    # step 2, until 0.200: A's token, 999 of B. step 3, 0.2-0.3: A's token, 1 of B, 500 of C, 498 of D, which came in step 2
    # step 4: A, B, C run, 2 of D: 5 tokens are a decode step's time, until 0.310. Then decode steps: A has its fifth token at
    # the end of step 5, B and C theirs of steps 4-7, D of 5-8
    result = replay(_requests(*FOUR), _together(VLLM_V1))
    assert result.first_token_s == pytest.approx([0.1, 0.3, 0.3, 0.31])
    assert result.finished_s == pytest.approx([0.32, 0.34, 0.34, 0.35])


def test_vllm_scheduling_ahead_lets_a_newcomer_wait_for_one_more_step():
    # D comes in step 2 (0.1-0.2), when step 3 is composed already: step 3 is A's token, 1 of B and 500 of C, 502 tokens
    # until 0.2502; step 4 holds D's 500 tokens and three running sequences until 0.3005
    result = replay(_requests(*FOUR), _together(VLLM_V1_ASYNC))
    assert result.first_token_s == pytest.approx([0.1, 0.2502, 0.2502, 0.3005])
    assert result.finished_s == pytest.approx([0.3105, 0.3305, 0.3305, 0.3405])


def test_sglang_prefills_as_long_as_prompts_wait():
    # A until 0.1; B until 0.2; C and D (composed at 0.2 with D, which came at 0.115) until 0.3; then four decode steps
    result = replay(_requests(*FOUR), _together(ALONE))
    assert result.first_token_s == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert result.finished_s == pytest.approx([0.34] * 4)  # A and B gained nothing meanwhile


def test_sglang_composes_its_next_step_while_one_runs():
    # D comes in step 2, after step 3 (C alone, until 0.25) was composed; it is step 4, until 0.30
    result = replay(_requests(*FOUR), _together(SGLANG))
    assert result.first_token_s == pytest.approx([0.1, 0.2, 0.25, 0.3])
    assert result.finished_s == pytest.approx([0.34] * 4)


def test_sglang_looks_again_as_soon_as_a_step_of_prompts_is_launched():
    # It looks every 30 steps, launching takes 50 ms of a step of 100. A is step 0, decodes from 0.1 on. B comes at 0.155: seen at
    # the start of step 30 (0.39), in step 31 (0.4-0.5). C has missed that look, D comes while step 31 is launched: both are in
    # step 32 (0.5-0.6). E comes when step 32 is launched: it waits for the look at step 62, is in step 63, from 0.9 on
    model = _together(SGLANG, look_steps=30, launch_s=0.05)
    result = replay(_requests((0, 1000, 500), (0.155, 1000, 500), (0.395, 500, 500), (0.43, 500, 500), (0.58, 1000, 500)), model)
    assert result.first_token_s == pytest.approx([0.1, 0.5, 0.6, 0.6, 1.0])


def test_an_engine_that_only_prefills_composes_ahead_too():
    # as above: A 0-0.1, B 0.1-0.2, C alone 0.2-0.25, D 0.25-0.3; not ahead C and D share 0.2-0.3
    steps = 3 * STEP_S  # until the decode side has them
    ahead = dataclasses.replace(SGLANG, deals_prefill="balanced")
    seen = replay(_requests(*FOUR), _apart(ahead)).first_token_s
    assert seen == pytest.approx([0.1, 0.2, 0.25, 0.3], abs=steps)
    assert replay(_requests(*FOUR), _apart(dataclasses.replace(ahead, ahead_apart=0))).first_token_s[2] >= 0.3


def test_what_sglang_computed_is_looked_at_after_the_next_step_is_launched():
    # A 0-0.1, B 0.1-0.2. Where the process waits for the GPU in every layer, B is launched by 0.2 and A is looked at then;
    # where launching takes 70 ms, B is launched at 0.14; where B is no more, A is seen when it ends
    both, first = _requests((0, 1000, 50), (0, 1000, 50)), {}
    for launch_s in (0.0, 0.07, float("inf")):
        first[launch_s] = replay(both, _together(SGLANG, launch_s=launch_s)).first_token_s.tolist()
    assert first[0.0] == pytest.approx([0.1, 0.2])
    assert first[0.07] == pytest.approx([0.14, 0.2])
    assert first[float("inf")] == pytest.approx([0.2, 0.2])
    assert replay(_requests((0, 1000, 50)), _together(SGLANG, launch_s=float("inf"))).first_token_s == pytest.approx([0.1])


def test_a_step_with_the_later_piece_of_a_prompt_may_attend_more_slowly():
    # 1 s per 10^6 keys, budget 1,500. Step 0: A whole (1,000 x 500 keys) and 500 of B (500 x 250): 0.625 s. Step 1: the rest
    # of B after 500 (500 x 750 = 375,000 keys), ten times as long: 3.75 s
    both = _requests((0, 1000, 1), (0, 1000, 1))
    prices = {"prompt_s": lambda _busiest, _mean, keys, _decodes: keys * 1e-6, "budget_tokens": 1500.0}
    assert replay(both, _together(ALONE, **prices)).first_token_s == pytest.approx([0.625, 1.0])
    assert replay(both, _together(ALONE, **prices, cut_keys=10.0)).first_token_s == pytest.approx([0.625, 4.375])


def test_the_first_step_with_a_later_piece_waits_for_its_kernel_to_be_compiled():
    # budget 1,500, 0.1 ms a token. Step 0: A and 500 tokens of B, until 0.15. The process then compiles for 7 s, from when it had
    # launched step 0: it sees A at 7.0. Step 1 is taken to start when step 0 ends: 0.15 + 7 + 0.05. The later pair has the kernel
    pairs = _requests((0, 1000, 1), (0, 1000, 1), (20, 1000, 1), (20, 1000, 1))
    assert replay(pairs, _together(ALONE, budget_tokens=1500.0)).ttft_s == pytest.approx([0.15, 0.2] * 2)
    cold = replay(pairs, _together(ALONE, budget_tokens=1500.0, first_cut_s=7.0))
    assert cold.ttft_s == pytest.approx([7.0, 7.2, 0.15, 0.2])


def test_an_engine_that_cuts_no_prompt_compiles_nothing():
    whole = _requests((0, 1000, 1), (0, 1000, 1))
    assert replay(whole, _together(ALONE, budget_tokens=2000.0, first_cut_s=7.0)).ttft_s == pytest.approx([0.2, 0.2])


def test_a_sequence_that_decodes_already_stalls_while_a_kernel_is_compiled():
    # A decodes from 0.1 on and has a token every 10 ms; B, of 1,500 tokens, is cut: A waits 7 s and B's two steps of prompts
    both = _requests((0, 1000, 101), (0.5, 1500, 1))
    warm, cold = (replay(both, _together(ALONE, first_cut_s=seconds)).tpot_s[0] for seconds in (0.0, 7.0))
    assert cold - warm == pytest.approx(7.0 / 100)


def test_tensorrt_llm_takes_whole_prompts_into_what_decode_tokens_leave():
    # budget 1,010. A alone, until 0.1 (1,000 tokens; B no longer fits); B and A's token, 1,001 tokens, until 0.2001;
    # C and two tokens until 0.2503; D was seen in time for step 4: 500 + 3 tokens until 0.3006
    result = replay(_requests(*FOUR), _together(TENSORRT_LLM, budget_tokens=1010.0))
    assert result.first_token_s == pytest.approx([0.1, 0.2001, 0.2503, 0.3006])
    assert result.finished_s == pytest.approx([0.3106, 0.3206, 0.3306, 0.3406])


def test_prompts_share_a_step_up_to_its_budget_and_ranks_work_side_by_side():
    burst = _requests(*[(0, 1000, 10)] * 4)
    assert replay(burst, _apart(prefill=_pool(budget_tokens=2000))).ttft_s == pytest.approx([0.2, 0.2, 0.4, 0.4])
    assert replay(burst, _apart(prefill=_pool(ranks=4))).ttft_s == pytest.approx([0.1] * 4, abs=0.011)
    assert replay(burst, _apart(prefill=_pool(workers=2))).ttft_s == pytest.approx([0.1, 0.1, 0.2, 0.2], abs=0.011)
    one_each = _pool(budget_tokens=4000, slots=1)  # however many tokens there would be room for
    assert replay(burst, _apart(prefill=one_each)).ttft_s == pytest.approx([0.1, 0.2, 0.3, 0.4])
    longer = _requests((0, 5000, 10), (0, 1000, 10))
    whole = dataclasses.replace(TENSORRT_LLM, first_seen="at_entry", runs_ahead=0, handover_steps=0)
    assert replay(longer, _apart(whole)).ttft_s == pytest.approx([0.5, 0.6])  # beyond the budget: alone
    assert replay(longer, _apart()).ttft_s == pytest.approx([0.5, 0.6])  # five steps of 1,000, then the other


def test_a_client_sees_its_first_token_when_the_sequence_enters_the_decode_batch():
    pair = _requests((0, 1000, 101), (0, 1000, 101))
    apart = replay(pair, _apart(slots=1))
    # the second is prefilled at 0.2 and enters when the first has its 101 tokens, at 0.1 + 100 steps
    assert apart.first_token_s == pytest.approx([0.1, 1.1])
    assert apart.finished_s == pytest.approx([1.1, 2.1])
    together = replay(pair, _together(slots=1))
    assert together.first_token_s == pytest.approx([0.1, 1.1 + 0.1])


def test_sglang_deals_decode_ranks_in_turn_and_prefill_ranks_by_a_random_number():
    # eight prompts at once on four ranks of each pool: in turn two sequences each; by chance one has three or more
    burst = _requests(*[(0, 1000, 50)] * 8)
    busiest = []
    at_once = dataclasses.replace(SGLANG, runs_ahead=0, handover_steps=0)
    model = _apart(at_once, prefill=_pool(ranks=4, slots=1), ranks=4, decode_s=lambda n: busiest.append(n) or STEP_S)
    firsts = replay(burst, model).first_token_s
    assert max(busiest) == 2
    assert firsts.max() > 0.29  # in turn all would be prefilled by 0.2


def test_sglang_ranks_that_take_sequences_in_decode_nothing_meanwhile():
    # in turn A and C share a decode rank, B has the other. Each enters in a step in which its rank only enters it, and has its
    # 50th token 49 steps later; C comes 0.2 s after A, which loses that step too. With one rank entering takes no step
    three = _requests((0, 500, 50), (0, 500, 50), (0.2, 500, 50))
    apart = replay(three, _apart(SGLANG, ranks=2))
    assert apart.finished_s - apart.first_token_s == pytest.approx([51 * STEP_S, 50 * STEP_S, 50 * STEP_S])
    alone = replay(three, _apart(SGLANG))
    assert alone.finished_s - alone.first_token_s == pytest.approx([49 * STEP_S] * 3)


def test_sglang_takes_the_decode_slot_before_it_prefills_and_others_after():
    pair = _requests((0, 1000, 101), (0, 1000, 101))
    result = replay(pair, _apart(dataclasses.replace(ALONE), slots=1))
    assert result.first_token_s == pytest.approx([0.1, 1.1 + 0.1])


@pytest.mark.parametrize(
    ("first", "seen_s", "done_s"), [("at_entry", 0.1, 0.1), ("with_first_step", 0.11, 0.1), ("by_first_step", 0.11, 0.11)]
)
def test_what_the_first_decode_step_returns_is_of_the_engine(first, seen_s, done_s):
    result = replay(_requests((0, 1000, 11)), _apart(dataclasses.replace(AT_ONCE, first_seen=first)))
    assert result.first_token_s == pytest.approx([seen_s])
    assert result.finished_s == pytest.approx([done_s + 10 * STEP_S])


def test_routers_that_know_their_own_turns_only_send_two_requests_to_one_worker():
    # two workers of one slot, prompts prefilled at 0.1. One router gives each a request; of eight some begin with the same one,
    # so that one of two requests waits for the answer of the other, 1 s
    pairs = _requests(*[(2.5 * pair, 1000, 101) for pair in (0, 0, 1, 1, 2, 2, 3, 3)])
    one = _apart(prefill=_pool(budget_tokens=2000.0, workers=2), slots=1, workers=2)
    assert replay(pairs, one).ttft_s == pytest.approx([0.1] * 8)
    several = dataclasses.replace(one, routers=8)
    firsts = [router.next_decoder() for router in routers_of(several)]
    together = [a == b for a, b in zip(firsts[::2], firsts[1::2], strict=True)]
    assert any(together)
    assert not all(together)
    waits = replay(pairs, several).ttft_s.reshape(4, 2).max(axis=1)
    assert waits == pytest.approx([1.1 if same else 0.1 for same in together], abs=0.11)


def test_every_router_is_even_on_its_own():
    for router in routers_of(dataclasses.replace(_apart(prefill=_pool(workers=2), workers=3), routers=5)):
        assert sorted(router.next_decoder() for _ in range(6)) == [0, 0, 1, 1, 2, 2]
        assert sorted(router.next_prefiller() for _ in range(4)) == [0, 0, 1, 1]


def test_a_kv_cache_arrives_between_two_looks_of_the_decode_side():
    # A decodes from 0.1 on. B is handed over at 0.205, inside the step 0.20-0.21: it joins at 0.21, with steps composed ahead
    # at 0.22, and at 0.25 where the engine looks after three steps more
    both = _requests((0, 1000, 100), (0.105, 1000, 100))
    entered = {
        ahead + late: replay(both, _apart(dataclasses.replace(AT_ONCE, runs_ahead=ahead, handover_steps=late))).first_token_s[1]
        for ahead, late in ((0, 0), (1, 0), (1, 3))
    }
    assert entered == pytest.approx({0: 0.21, 1: 0.22, 4: 0.25})


def test_hand_overs_to_one_rank_share_its_link():
    # 1,000 tokens take 50 ms of the link: both are prefilled at 0.1, the second arrives 50 ms after the first
    model = dataclasses.replace(_apart(prefill=_pool(workers=2)), handover=Handover(start_s=0.02, token_s=5e-5))
    result = replay(_requests((0, 1000, 50), (0, 1000, 50)), model)
    assert result.ttft_s == pytest.approx([0.17, 0.22])
    # a sender that must send eight copies is the slower end; from two workers they go at once
    copies = dataclasses.replace(model, handover=Handover(start_s=0.02, sent_token_s=8e-5))
    assert replay(_requests((0, 1000, 50), (0, 1000, 50)), copies).ttft_s == pytest.approx([0.2, 0.2])


def test_prompts_queue_for_the_front_end_in_what_answers_leave_of_it():
    # 5 ms and 5 us a token: 10 ms each, one after the other, then 0.1 s of prefill each
    frontend = Frontend(fixed_s=0.02, prompt_s=0.005, token_s=5e-6)
    model = dataclasses.replace(_together(budget_tokens=2000.0), frontend=frontend)
    burst = replay(_requests(*[(0, 1000, 3)] * 2), model)
    assert burst.ttft_s == pytest.approx([0.03 + 0.1, 0.13 + 0.1], abs=1e-3)
    # 16 sequences of 100 tokens/s and 0.5 ms an output take 80 % of it: the 10 ms become 50
    late = [(0.0, 1, 5000)] * 16 + [(5.0, 1000, 2)]
    waits = [
        replay(_requests(*late), dataclasses.replace(model, frontend=dataclasses.replace(frontend, output_s=each))).ttft_s[16]
        for each in (0.0, 5e-4)
    ]
    assert waits[1] - waits[0] == pytest.approx(0.04, abs=STEP_S)


def test_every_engine_takes_requests_in_by_itself():
    # 50 ms of front end each: two prompts at once come through one process 50 ms apart, through two at the same time;
    # two prefill workers take one each, in 0.1 s
    frontend = Frontend(prompt_s=0.045, token_s=5e-6)
    waits = {}
    for servers in (1, 2):
        each = dataclasses.replace(frontend, servers=servers)
        model = dataclasses.replace(_apart(prefill=_pool(workers=2)), frontend=each)
        waits[servers] = replay(_requests((0, 1000, 3), (0, 1000, 3)), model).ttft_s
    assert waits[1] == pytest.approx([0.15, 0.2], abs=STEP_S)
    assert waits[2] == pytest.approx([0.15, 0.15], abs=STEP_S)


def test_answers_of_another_engine_do_not_slow_prompts_down():
    # 16 answers stream on the decode side, none on the prefill side: a prompt's 10 ms stay 10 ms there
    late = [(0.0, 1, 5000)] * 16 + [(5.0, 1000, 2)]
    frontend = Frontend(prompt_s=0.005, token_s=5e-6, output_s=5e-4)
    model = dataclasses.replace(_apart(), frontend=frontend)
    wait_s = replay(_requests(*late), model).ttft_s[16]
    assert wait_s == pytest.approx(0.01 + 0.1 + 0.5 * 16 * 5e-4, abs=STEP_S)


@pytest.mark.slow
def test_open_loop_waiting_is_that_of_an_m_d_1_queue():
    rate, service_s = 7.0, 0.1
    load = rate * service_s
    result = replay(poisson_requests(1000, 2, count=20_000, rate_per_s=rate), _apart())
    expected = service_s + load * service_s / (2 * (1 - load))
    assert result.ttft_s.mean() == pytest.approx(expected + STEP_S / 2 * rate * STEP_S, rel=0.05)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("apart", [True, False])
def test_closed_loop_obeys_littles_law(policy, apart):
    changes = {"decode_s": lambda n: 0.005 + 0.001 * n}
    model = _apart(policy, **changes) if apart else _together(policy, **changes)
    result = replay(benchmark_requests(1000, 200, count=2000, concurrency=16, shortest=0.8), model)
    span = result.finished_s.max()
    assert (result.finished_s - result.sent_s).sum() / span == pytest.approx(16, rel=0.01)


def test_fixed_lengths_do_not_stay_in_lockstep_where_running_sequences_go_on():
    # 8 prompts fill a step: in vLLM the first eight gain tokens while the others are prefilled, so the groups finish apart and
    # come again apart; in SGLang all finish together and come again together
    load = benchmark_requests(1000, 250, count=640, concurrency=64)
    waits = {}
    for policy in (VLLM_V1_ASYNC, SGLANG):
        result = replay(load, _together(policy, budget_tokens=8000.0))
        waits[policy.name] = float(np.median(result.ttft_s[320:]))
    assert waits["vllm-v1-async"] < 0.7 * waits["sglang-overlap"]


def test_an_engine_that_looks_every_n_steps_adds_half_of_them():
    requests = poisson_requests(1, 1000, count=4000, rate_per_s=5)
    often, seldom = (replay(requests, _together(ALONE, look_steps=steps)) for steps in (1, 30))
    running = slice(200, None)
    added_s = seldom.ttft_s[running].mean() - often.ttft_s[running].mean()
    assert added_s == pytest.approx((30 - 1) / 2 * STEP_S, rel=0.1)


def test_gathering_waits_until_every_rank_has_a_prompt_or_patience_ends():
    # step 0 holds A and B until 0.1; step k from then on starts at 0.1 + 10 ms (k - 1), both ranks decode. The engine counts from
    # step 0 whoever waits: C, who came at 1.0, joins step 120 (1.29 to 1.39); D, who came at 1.5, step 180 (1.98 to 2.0799)
    running = ((0, 1000, 1000), (0, 1000, 1000))
    policy = dataclasses.replace(TENSORRT_LLM, runs_ahead=0)
    model = _together(policy, ranks=2, gather_steps=60, budget_tokens=2000.0)
    assert replay(_requests(*running, (1.0, 999, 1000), (1.5, 998, 1000)), model).first_token_s[2:] == pytest.approx(
        [1.39, 2.0799]
    )
    # both ranks have one when D comes earlier, at 1.2: at once, until 1.3. The count starts again with that step, 111: E: 171
    both = replay(_requests(*running, (1.0, 999, 1000), (1.2, 999, 1000), (1.5, 998, 1000)), model)
    assert both.first_token_s[2:] == pytest.approx([1.3, 1.3, 1.3 + 59 * STEP_S + 0.1])
    # a rank that has prompts only is not waited for: B, alone on its rank, starts while A decodes
    assert replay(_requests((0, 1000, 1000), (0.505, 999, 1000)), model).first_token_s == pytest.approx([0.1, 0.51 + 0.0999])


def test_tensorrt_llm_deals_to_the_fewest_prompt_tokens_within_an_even_share_of_requests():
    # A (1,000 tokens) and B (100) have a rank each; C goes to B's, D too would by tokens, but that rank has its share: to A's.
    # Each step is its busiest rank: step 0 1,000 tokens; C beside A and B 901 + 1 until 0.2402; D 901 tokens with A until 0.3903
    four = _requests((0, 1000, 100), (0, 100, 100), (0.15, 300, 100), (0.3, 900, 100))
    model = _together(dataclasses.replace(TENSORRT_LLM, runs_ahead=0), ranks=2, budget_tokens=2000.0)
    assert replay(four, model).first_token_s == pytest.approx([0.1, 0.1, 0.15 + 0.0301, 0.3001 + 0.0901])


def test_tensorrt_llm_streams_a_first_token_when_it_composes_the_step_before_which_it_came():
    # A decodes from 0.1 on, step k from 0.1 + 10 ms k. B is prefilled at 0.205, in step 10: taken in when step 11 starts, its
    # cache found when step 12 does, at 0.22, while step 13 is composed: its first token then, nine more by the end of step 21
    both = _requests((0, 1000, 100), (0.105, 1000, 10))
    new, old = (replay(both, _apart(policy)) for policy in (TENSORRT_LLM, TENSORRT_LLM_OLD))
    assert (new.first_token_s[1], new.finished_s[1]) == pytest.approx((0.22, 0.32))
    # before 1.0 with what that step returns
    assert (old.first_token_s[1], old.finished_s[1]) == pytest.approx((0.24, 0.32))


def test_prompts_of_sglang_stall_the_ranks_that_have_them_only():
    # rank 0 has A, rank 1 has B; C comes to rank 0 at 0.5: A loses its 0.1 s, B gains one token in that step
    policy = dataclasses.replace(ALONE, deals="balanced")
    result = replay(_requests((0, 1000, 100), (0, 1000, 100), (0.505, 1000, 2)), _together(policy, ranks=2))
    assert result.finished_s[1] - result.finished_s[0] == pytest.approx(-STEP_S)  # one token ahead of A


PLAIN = dataclasses.replace(AT_ONCE, block_tokens=1)
OVERFLOWING = ((0, 1000, 101), (0, 1000, 101))
"""With 2,100 tokens of KV cache: both prompts end at 0.2. After 50 steps, at 0.7, they hold 1,050 tokens each and a further step
has no room: B gives way, and A holds too much for it until it is done, at 1.2."""


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("keeps", "done_s"),
    [
        (False, 1.2 + 0.1051 + 49 * STEP_S),  # 1,051 tokens, whose step returns the 52nd of its answer
        (True, 1.2 + 50 * STEP_S),  # A has written over 50 of 1,050; 51 take a decode step
    ],
)
def test_a_kv_cache_that_overflows_preempts_the_newest_which_computes_its_context_again(keeps, done_s, apart):
    sizes = {"kv_tokens": 2100.0, "budget_tokens": 2000.0, "keeps_freed": keeps}
    model = _apart(PLAIN, _pool(budget_tokens=2000.0), **sizes) if apart else _together(PLAIN, **sizes)
    result = replay(_requests(*OVERFLOWING), model)
    assert result.preempted == 1
    assert result.first_token_s == pytest.approx([0.2, 0.2])  # seen once
    assert result.finished_s == pytest.approx([1.2, done_s])


def test_what_waits_in_the_hosts_memory_is_not_computed_again():
    keeps = dataclasses.replace(PLAIN, host_keeps=True)
    result = replay(_requests(*OVERFLOWING), _apart(keeps, _pool(budget_tokens=2000.0), kv_tokens=2100.0))
    assert (result.preempted, result.finished_s[1]) == (1, pytest.approx(1.2 + 50 * STEP_S))


def test_a_step_that_preempts_takes_nobody_in():
    # C comes at 0.4 and has no room; when B gives way C stays behind it: both only when A is done, B's 1,051 tokens first
    result = replay(_requests(*OVERFLOWING, (0.4, 500, 11)), _together(PLAIN, kv_tokens=2100.0, budget_tokens=2000.0))
    assert result.preempted == 1
    assert result.first_token_s[2] == pytest.approx(1.2 + 0.1551)


def test_whole_blocks_are_held():
    # 16 tokens at once leave 7.5 of each last block unused on average: 2,000 + 15 + 2 x 42 fit 2,100, 43 do not
    blocks = dataclasses.replace(PLAIN, block_tokens=16)
    result = replay(_requests(*OVERFLOWING), _together(blocks, kv_tokens=2100.0, budget_tokens=2000.0))
    assert result.finished_s == pytest.approx([1.2, 1.2 + 0.1043 + 57 * STEP_S])


def test_an_engine_that_sets_whole_answers_aside_preempts_nobody():
    waits = dataclasses.replace(TENSORRT_LLM, runs_ahead=0)
    kept = replay(_requests(*OVERFLOWING), _together(waits, kv_tokens=2200.0))
    assert kept.preempted == 0
    assert kept.first_token_s[1] == pytest.approx(kept.finished_s[0] + 0.1, abs=1e-3)


def test_a_steady_start_is_where_a_long_replay_is():
    model = _together(VLLM_V1_ASYNC, budget_tokens=8000.0)
    load = poisson_requests(1000, 500, count=3000, rate_per_s=4)
    long, steady = replay(load, model), replay_steady(load, model, 28)
    late = slice(1000, None)
    assert steady.ttft_s[late].mean() == pytest.approx(long.ttft_s[late].mean(), rel=0.05)
    assert steady.tpot_s.mean() == pytest.approx(long.tpot_s[late].mean(), rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4000), st.integers(1, 300)), min_size=1, max_size=40),
    st.sampled_from(sorted(POLICIES)),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([float("inf"), 5000.0, 9000.0]),
)
def test_every_request_gets_its_tokens_in_order(entries, name, apart, slots, looks, kv_tokens):
    policy = POLICIES[name]
    requests = _requests(*sorted(entries))
    pool = {"slots": slots, "look_steps": looks, "ranks": 2, "gather_steps": 20, "kv_tokens": kv_tokens}
    model = ServiceModel(policy, _pool(**pool), _pool(ranks=2) if apart else None, Frontend(fixed_s=0.01))
    result = replay(requests, model)
    assert np.isfinite(result.finished_s).all()
    assert (result.ttft_s >= 0.01 + PER_TOKEN_S * requests.isl_tokens - 1e-9).all()
    steps = requests.osl_tokens - 1 - result.preempted
    assert (result.finished_s >= result.first_token_s + (steps - 1) * STEP_S - 1e-6).all()
    again = replay(requests, model)
    assert np.array_equal(result.finished_s, again.finished_s)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_keeps_its_contract(policy):
    assert POLICIES[policy.name] is policy
    for decoding in (0, 7, 900):
        budget = policy.budget(1000, decoding)
        assert budget <= 1000
        assert (budget == 1000 - decoding) == (policy.mixes or decoding == 0)  # prompts that join share the budget
    for left in (1.0, 400.0, 900.0):
        assert 0 <= policy.piece(left, 500.0, False) <= min(left, 500.0)
        assert policy.piece(left, 1000.0, True) == left
    assert policy.piece(900.0, 500.0, True) > 0  # what is alone always goes on
    padded = [policy.padded(n) for n in range(1, 600)]
    assert padded == sorted(padded)
    assert all(n <= p < 1.5 * n + 8 for n, p in enumerate(padded, 1))
    assert policy.runs_ahead in (0, 1)
    assert 0 <= policy.reserve <= 1


def test_versions_have_the_scheduler_of_their_generation():
    assert policy_of("vllm", "0.13") is VLLM_V1
    assert policy_of("vllm", "0.14") is VLLM_V1_ASYNC
    assert policy_of("vllm", "0.24") is VLLM_V1_ASYNC
    assert policy_of("sglang", "0.5.23") is SGLANG
    with pytest.raises(ProblemError, match="the scheduler of llamacpp is not modelled; services are predicted for"):
        policy_of("llamacpp", "1")
    assert {policy.name for generations in GENERATIONS.values() for _, policy in generations} == set(POLICIES)


def test_sglang_sets_whole_answers_aside_where_it_keeps_no_prefixes():
    assert policy_of("sglang", "0.5.12").without_prefix_cache().reserve == 1.0
    vllm = policy_of("vllm", "0.24")
    assert vllm.without_prefix_cache() is vllm


def test_vllm_captures_longer_steps_of_gpt_oss():
    assert [VLLM_V1_ASYNC.captured(name) for name in ("GptOssForCausalLM", "Qwen3MoeForCausalLM")] == [1024, 512]
