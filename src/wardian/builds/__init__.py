"""Manifests become plans, and plans become templates.

find.py  dockerfile/  pyproject.py  wardian_toml.py     a directory -> a Plan and its files (pure parsers)
keys.py  cache.py  copying.py  steps.py  stages.py      a Plan's stages, step by step, in benches
warm.py  builder.py  lock.py                            start, ready, snapshot; the whole; what it was made of
"""
