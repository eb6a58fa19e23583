"""The egress conformance suite: attacks from inside a sandbox on servers of our own, and what they saw."""
