"""Settings that are addresses."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from efafnet.platform.credentials import bare

BareAddress = Annotated[str, BeforeValidator(lambda value: bare(value) if isinstance(value, str) else value)]
"""An address whose name and password are cut when the setting is read, so that no dump of the settings has them."""
