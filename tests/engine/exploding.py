"""An adapter that is accepted and whose requests turn non-finite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import load_file, save_file

from weft.engine.build import BuiltEngine
from weft.engine.offline import register_folder
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME, FolderStore

if TYPE_CHECKING:
    from tests.bench import Bench


def register_exploding_adapter(bench: Bench, built: BuiltEngine, folder: Path) -> str:
    """Each factor and scale is as large as may be: gate and up come to some 1e22, and the product
    of the two is not finite."""
    shutil.copytree(bench.oracle.adapter_dirs["all-linear"], folder)
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"lora_alpha": 1e6}))
    tensors = load_file(folder / TENSORS_NAME)
    largest = max(float(abs(tensor).max()) for tensor in tensors.values())
    large = {name: 0.9e9 / largest * tensor for name, tensor in tensors.items()}
    save_file(large, folder / TENSORS_NAME)
    return register_folder(built, FolderStore(bench.root / "store"), folder)
