"""Schedules that are searched on a model, and the experiments behind them. Not imported by the app."""
