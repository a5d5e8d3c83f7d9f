"""What vLLM asks of a command that splits every sequence's KV cache over ranks (decode context parallelism)."""

from __future__ import annotations

import numpy as np

from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Bools, Subject

VLLM = ("vllm",)
SIZE = "--decode-context-parallel-size"
HANDOVER = "--kv-transfer-config"


def _ranks(subject: Subject) -> int:
    """Ranks that share a sequence's cache, of a command that was written; 1 where it says none."""
    given = subject.option(SIZE) or "1"
    return max(int(given), 1) if given.isdecimal() and len(given) < 10 else 1


def _heads(subject: Subject) -> tuple[int, int] | None:
    """(query heads, KV heads) of the attention that has several KV heads; none where all is latent."""
    found = [(kind.shardable_heads, kind.kv_heads) for kind in subject.model.attentions if hasattr(kind, "kv_heads")]
    return found[0] if found else None


def _uneven(subject: Subject) -> Bools:
    return np.asarray(subject.rows.tp % _ranks(subject) != 0)


def _no_copies(subject: Subject) -> Bools:
    """Rows whose KV heads have fewer copies than there are ranks to share one."""
    ranks, heads = _ranks(subject), _heads(subject)
    if ranks == 1 or heads is None:
        return subject.none()
    queries, shared = heads
    few = (subject.rows.tp <= shared) | (ranks > subject.rows.tp // shared)
    return np.asarray(few | subject.all((queries // shared) % ranks != 0))


def _no_copies_text(subject: Subject) -> str:
    heads = _heads(subject)
    assert heads is not None
    queries, shared = heads
    tp = int(subject.rows.tp[0])
    fits = [n for n in range(max(tp // shared, 1), 0, -1) if tp % n == 0 and (queries // shared) % n == 0]
    return (
        f"{SIZE} {_ranks(subject)} shares out copies of KV heads, and must divide the {queries // shared} query heads of each: "
        f"tp {tp} makes {tp / shared:g} copies of {shared} KV heads; the most that would do is {fits[0]}"
    )


def _half_handed_over(subject: Subject) -> Bools:
    """Rows of a pool that hands caches over by NIXL and whose ranks do not hold them as its connector expects."""
    ranks = _ranks(subject)
    handed = "NixlConnector" in (subject.option(HANDOVER) or "")
    if ranks == 1 or not handed:
        return subject.none()
    return np.asarray((subject.rows.tp != ranks) | subject.all(_heads(subject) is not None))


RULES = (
    Rule(
        name="context_ranks_divide",
        says="Ranks that share a sequence's KV cache divide the tensor-parallel ones, of which they are.",
        source="vllm/config/parallel.py (0.33.0)",
        engines=VLLM,
        broken=_uneven,
        because=lambda s: f"{SIZE} {_ranks(s)} does not divide tp {int(s.rows.tp[0])}",
    ),
    Rule(
        name="context_ranks_of_kv_heads",
        says="A sequence's KV cache is shared by no more ranks than hold copies of the same KV head.",
        source="vllm/config/model.py:1578 verify_with_parallel_config (0.33.0); its page on context parallel deployment",
        engines=VLLM,
        broken=_no_copies,
        because=_no_copies_text,
    ),
    Rule(
        name="context_ranks_of_the_connector",
        says="NixlConnector hands over caches of latent attention that all tensor-parallel ranks share, or that none share.",
        source="vllm/config/vllm.py:1572 (0.33.0)",
        engines=VLLM,
        broken=_half_handed_over,
        because=lambda s: (
            f"NixlConnector takes {SIZE} 1, or tp (here {int(s.rows.tp[0])}) for latent attention, not {_ranks(s)} "
            f"of {s.model.name}"
        ),
    ),
)
