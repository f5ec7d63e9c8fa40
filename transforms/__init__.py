"""Beam steps from raw events to released tables, and the plain functions behind them."""
