"""The trainer: model versions, aliases, deployments, decisions and batch predictions."""
