"""Which engine flags: a version-specific space, a cost-model evaluator and an Optuna study."""
