"""What benchmarks make of what they read."""
