"""A step of each pool of a service when it is full: where the time goes, and what memory it takes."""

from __future__ import annotations

from autotune.documents.deployment import Deployment, PoolRole
from autotune.documents.prediction import Prediction, PrefillPrediction
from autotune.predicting.step import predict
from autotune.serving.policies import policy_of
from search_spaces.loader import load_engine, resolve_version


def full_steps(deployment: Deployment, slots: int) -> dict[PoolRole, Prediction | PrefillPrediction]:
    """A full step of every pool; slots : sequences that all decoding instances hold together."""
    return {role: full_step(deployment, role, slots) for role in deployment.pools}


def full_step(deployment: Deployment, role: PoolRole, slots: int) -> Prediction | PrefillPrediction:
    """A step of one pool of a service, full."""
    pool = deployment.pools[role]
    if role == "prefill":
        tokens = pool.max_batched_tokens or _default_tokens(deployment)
        return predict(deployment.alone("prefill", pool.model_copy(update={"max_batched_tokens": tokens})))
    sized = {"batch_per_dp_rank": max(slots // (pool.dp * pool.instances), 1)}
    if role == "serve":  # its prefill steps need no more than what is left free for them
        sized["max_batched_tokens"] = 0
    return predict(deployment.alone("decode", pool.model_copy(update=sized)))


def _default_tokens(deployment: Deployment) -> int:
    """Token budget of a prefill step where none is set."""
    engine = load_engine(deployment.engine.name)
    return policy_of(engine.name, resolve_version(engine, deployment.engine.version)).default_tokens
