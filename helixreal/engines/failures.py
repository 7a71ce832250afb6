"""Which errors of an engine concern some requests only, and which end the engine."""

from __future__ import annotations

from helixsim.errors import HelixError


class EngineLostError(HelixError):
    """The engine cannot run anything any more: its worker must end."""


# Names, not types: torch need not be installed, and its releases differ in their types.
_TYPES = frozenset({"OutOfMemoryError", "AcceleratorError", "DistBackendError", "DistNetworkError"})
_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "CUDA error",
    "CUDA driver error",
    "HIP error",
    "device-side assert",
    "CUBLAS_STATUS",
    "cuDNN error",
    "NCCL error",
)


def ends_engine(error: BaseException) -> bool:
    """Whether an error leaves the engine unusable.

    These are the want of memory, and errors of a device, after which every further call fails.
    """
    if isinstance(error, EngineLostError | MemoryError):
        return True
    if any(kind.__name__ in _TYPES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def reason_of(error: BaseException) -> str:
    """An error in words: ours say what they are, others need the name of their type."""
    return str(error) if isinstance(error, HelixError) else f"{type(error).__name__}: {error}"
