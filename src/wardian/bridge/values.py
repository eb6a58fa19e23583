"""Values as they cross the channel."""

from __future__ import annotations

import base64
from typing import Any

from wardian.model.secret import Place, Sealed


def place_values(place: Place) -> dict[str, Any]:
    return {"tenant": place.tenant, "secret": place.secret_id, "version": place.version}


def sealed_values(sealed: Sealed) -> dict[str, Any]:
    return {
        "key_id": sealed.key_id,
        "data_key": base64.b64encode(sealed.data_key).decode(),
        "value": base64.b64encode(sealed.value).decode(),
    }


def sealed_of(told: Any) -> Sealed:
    return Sealed(told["key_id"], base64.b64decode(told["data_key"]), base64.b64decode(told["value"]))
