"""`autotune.documents.deployment` by the name it had until 0.1: scripts of users import it."""

from autotune.documents.deployment import Deployment, Load, Pool

__all__ = ["Deployment", "Load", "Pool"]
