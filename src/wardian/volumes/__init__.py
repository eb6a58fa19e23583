"""Volumes: trees of files that outlive sandboxes and are shared between them.

A volume is **not** a directory of the host that guests reach into. Its tree (names, owners, modes, links) is
rows of a database of its own; the bytes of its files are files of ours, named by numbers that we give. So a
name, a link or a device that a tenant makes up never meets the host's file system: there is no path to
traverse, no link to follow, nothing to race. What is bounded is bounded exactly, and owners are just numbers.
"""
