"""Configuration: registries of names, typed options, run specs, and user-facing errors."""
