"""How older ledgers are brought up to date."""
