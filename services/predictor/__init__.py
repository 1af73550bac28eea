"""The predictor: answers predictions online and keeps a durable record of each before it answers."""
