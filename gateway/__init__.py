"""The one way in: Envoy with mutual TLS, the certificates that it checks and who may call what."""
