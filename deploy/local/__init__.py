"""The whole platform on one machine: PostgreSQL, the four services and Envoy, supervised."""
