"""What OpenAI's and vLLM's APIs have and this server does not: refused by name, never ignored.

A parameter is accepted where its value asks for what happens anyway. These change no answer here
and are accepted with any value of the right type: `user`, `safety_identifier`, `prompt_cache_key`
and `metadata` (labels for the caller's own use), `store` only as false (nothing is stored) and
`service_tier` only as "auto" or "default" (there is one tier).
"""

from __future__ import annotations

from collections.abc import Mapping

from weft.errors import InvalidRequestError

_LABELS: Mapping[str, type] = {
    "user": str,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "metadata": dict,
}

# values that ask for what happens anyway; null always does
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "length_penalty": (1,),
    "top_logprobs": (),  # of chat; the legacy route has `logprobs` alone
    "prompt_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),  # there are no tool calls
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
    "prompt_cache_retention": (),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "return_token_ids": (False,),
    "guided_choice": (),
    "guided_grammar": (),
}


def refuse_extras(extras: Mapping[str, object]) -> None:
    """InvalidRequestError for the first parameter that would have to be ignored."""
    for name, value in extras.items():
        if name in _LABELS:
            if value is not None and not isinstance(value, _LABELS[name]):
                raise InvalidRequestError(f"Invalid '{name}': wrong type.", param=name)
        elif name not in _NEUTRAL:
            shown = name[:100].encode("utf-8", "replace").decode()
            raise InvalidRequestError(
                f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter"
            )
        elif value is not None and not any(_is_same(value, ok) for ok in _NEUTRAL[name]):
            raise InvalidRequestError(
                f"Unsupported parameter: '{name}' with this value is not supported.",
                param=name,
                code="unsupported_parameter",
            )


def _is_same(value: object, neutral: object) -> bool:
    # 0 and 0.0 are one number, but false is not 0
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
