"""Wardian: a home for AI agents."""
