"""Engines behind the port :mod:`wardian.runs.engine`."""
