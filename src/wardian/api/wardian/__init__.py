"""Our own verbs, under ``/wardian``: only what the E2B API has no words for."""
