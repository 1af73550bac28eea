"""The JetStream source with a real nats-server: run by .ci/run, which says where it is in FORESIGHT_NATS_SERVER."""
