"""Where the demo base model and its LoRA adapters lie. Knows paths only: no model, no tensors."""

from pathlib import Path

ASSETS_DIR: Path = Path(__file__).parent / "assets"
BASE_DIR: Path = ASSETS_DIR / "base"
ADAPTERS_DIR: Path = ASSETS_DIR / "adapters"
BASE_NAME = "weft-demo-base"
