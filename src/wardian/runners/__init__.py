"""Runners: the code that an agent's runs are run by, released beside the environments that are frozen."""
