"""Dockerfiles: text to instructions, instructions to a Plan."""

from wardian.builds.dockerfile.planning import read_dockerfile

__all__ = ["read_dockerfile"]
