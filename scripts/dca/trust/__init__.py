"""Signs evidence, and verifies a wheel against it."""
