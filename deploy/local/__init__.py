"""The whole platform on one machine: PostgreSQL, the four services and Envoy, supervised."""

from deploy.local.background import LocalStack
from deploy.local.state import StackError

__all__ = ["LocalStack", "StackError"]
