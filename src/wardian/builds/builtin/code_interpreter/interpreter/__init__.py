"""The code interpreter: runs inside sandboxes of ``code-interpreter-v1``, never on the host.

An HTTP server on port 49999 (:mod:`.server`) keeps *contexts* (:mod:`.contexts`), each a *kernel*
(:mod:`.kernels`) with a working directory. Python and bash kernels are Jupyter's, forked from a process that
has imported everything already (:mod:`.zygote`); JavaScript's is our own, on node. All speak Jupyter's
messages, which :mod:`.lines` turns into what the SDK reads.

Imports within the package are relative: it is installed as ``interpreter`` in the sandbox.
"""
