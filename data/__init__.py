"""Schemas, catalogue, store, database and synthetic world: what the other rooms read and write."""
