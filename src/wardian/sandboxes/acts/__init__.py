"""What can be done to a sandbox, one durable act per file.

Each function runs in a turn of the sandbox's owner. Each has the same three parts (intent, act, result), and
what a crash between them leaves is repaired by ``wardian.sandboxes.reconciler``. ``checkpoint`` names those
places.
"""
