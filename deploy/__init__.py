"""How Foresight is run: the local stack, and the configuration of Prometheus and Grafana."""
