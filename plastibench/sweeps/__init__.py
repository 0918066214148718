"""Many runs: grids, worker pools, surveys and benchmarks."""
