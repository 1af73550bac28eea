"""The log in PostgreSQL, schema `logger`.

Whoever writes locks the single row of `log_state` before anything else and gives out positions in the transaction
that publishes them: writers take turns, never deadlock, see each other's work whole, and nothing can appear below a
position that was visible before. Readers take no lock.
"""

from services.logger.postgres.reading import LogState, LogStore

SCHEMA = "logger"

__all__ = ["SCHEMA", "LogState", "LogStore"]
