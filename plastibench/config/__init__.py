"""Names and options: registries, typed options, run specs, and the errors users see."""
