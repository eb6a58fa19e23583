"""``python3 -m interpreter``: serve on port 49999 until told to stop."""

import uvicorn

from .contexts import Contexts
from .languages import Languages
from .server import build_app
from .zygote import Zygote

PORT = 49999

if __name__ == "__main__":
    app = build_app(Contexts(Languages(Zygote())))
    uvicorn.run(app, host="0.0.0.0", port=PORT, log_level="warning", timeout_keep_alive=640)
