"""The API that programs in a run see, at ``http://run.wardian.internal``."""
