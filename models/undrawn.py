"""Networks whose first weights are not drawn: those that are filled from a file, or built for their shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Undrawn(TorchFunctionMode):
    """Inside, no weight of a network that is built is drawn: torch's generator stays where it is, and no time is spent
    on numbers that are overwritten. The weights hold what lay in their memory until they are loaded."""

    _DRAWS = frozenset((nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What ``func`` returns, or the tensor that it would fill."""
        given = kwargs or {}
        if func in self._DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
