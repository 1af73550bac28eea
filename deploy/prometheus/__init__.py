"""The scrape configuration of Prometheus, and a check of the monitoring against a running stack."""
