"""Clients of the Open Inference Protocol that others wrote, unchanged, against a live stack behind its gateway.

Each runs in an environment of its own, made from a lock in `benchmarks/peers`: two packages that register the proto
package `inference` collide in one process. `.ci/run` runs these tests; `make test` does not need the environments.
"""
