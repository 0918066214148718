"""Many runs: grids, engines, surveys and benchmarks."""
