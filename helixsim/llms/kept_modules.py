"""Which weights a quantized LLM keeps in their format, by the patterns in its ``config.json``."""

from __future__ import annotations

import re
from fnmatch import translate

from helixsim.llms.config_values import ConfigValues, shown

_KEYS = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")


class KeptModules:
    """Modules that are not quantized.

    Parameters
    ----------
    quantization
        The ``quantization_config``. A pattern is a name of a module, which stands for all below
        it, a name with ``*``, or ``re:`` and a regular expression.
    num_layers
        Number of layers.
    """

    def __init__(self, quantization: ConfigValues, num_layers: int) -> None:
        self._num_layers = num_layers
        self._names = set[str]()
        self._patterns = list[re.Pattern[str]]()
        for key in _KEYS:
            for index, pattern in enumerate(quantization.items(key) or ()):
                if not isinstance(pattern, str):
                    message = f"must be a text, not {shown(pattern)}"
                    raise quantization.error(f"{key}[{index}]", message)
                try:
                    self._add(pattern)
                except re.error as error:
                    message = f"{shown(pattern)} is no regular expression: {error}"
                    raise quantization.error(f"{key}[{index}]", message) from error

    def _add(self, pattern: str) -> None:
        if pattern.startswith("re:"):
            self._patterns.append(re.compile(pattern[3:]))
            return
        if "layers." in pattern:  # LLMs with an image encoder have longer names
            pattern = "model." + pattern[pattern.index("layers.") :]
        if "*" in pattern:
            self._patterns.append(re.compile(translate(pattern.rstrip("*") + "*")))
        else:
            self._names.add(pattern)

    def has(self, module: str) -> bool:
        """Whether most layers keep a module, such as ``self_attn.q_proj``."""
        kept = sum(
            self._matches(f"model.layers.{layer}.{module}") for layer in range(self._num_layers)
        )
        return 2 * kept > self._num_layers

    def _matches(self, name: str) -> bool:
        parts = name.split(".")
        above = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        return any(each in self._names for each in above) or any(
            pattern.match(name) for pattern in self._patterns
        )
