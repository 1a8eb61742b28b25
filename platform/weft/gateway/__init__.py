"""OpenAI's routes over an `EngineClient`: admission, streaming, metering. No torch."""
