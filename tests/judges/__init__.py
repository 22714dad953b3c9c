"""Outsiders who judge the server: clients of others, and the conformance suite. `scripts/judges` runs them."""
