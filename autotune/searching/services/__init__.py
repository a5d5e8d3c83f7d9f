"""Planning whole services: aggregated engines, or prefill and decode pools chosen together."""
