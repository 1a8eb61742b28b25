"""What the gateway and the engine say to each other: frozen values and one Protocol.

Nothing heavy is imported here, and neither HTTP nor tensors are known. Tokens are int ids of the
base model's vocabulary, times are seconds, and an adapter is named by its content digest only:
names, aliases and versions end in the registry.
"""

from weft.messages.client import (
    EngineClient,
    EngineDeadError,
    EngineDrainingError,
    EngineQueueFullError,
)
from weft.messages.facts import (
    AdapterLevel,
    AdapterPlacement,
    EngineInfo,
    EngineStats,
)
from weft.messages.outputs import (
    EngineOutput,
    ErrorCode,
    FinishReason,
    TokenLogprobs,
    Usage,
)
from weft.messages.requests import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    EngineRequest,
    Grammar,
    RequestVocabulary,
    SamplingParams,
    TenantShare,
)

__all__ = [
    "AdapterLevel",
    "AdapterPlacement",
    "EngineClient",
    "EngineDeadError",
    "EngineDrainingError",
    "EngineInfo",
    "EngineOutput",
    "EngineQueueFullError",
    "EngineRequest",
    "EngineStats",
    "ErrorCode",
    "FinishReason",
    "Grammar",
    "MAX_CHOICES",
    "MAX_LOGPROBS",
    "RequestVocabulary",
    "SamplingParams",
    "TenantShare",
    "TokenLogprobs",
    "Usage",
]
