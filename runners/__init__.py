"""How a job gets an engine."""
