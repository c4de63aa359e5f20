"""What tests and benchmarks of pools need, shipped so that an application's own tests can use it too."""
