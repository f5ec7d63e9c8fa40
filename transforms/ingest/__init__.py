"""Reading, decoding, validating and pseudonymising events."""
