"""The tiny LoRA adapter, for any of the tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emulated_cloud.hub.models.files import read_header, write_card, write_json, write_safetensors
from emulated_cloud.hub.models.weights import Random

if TYPE_CHECKING:
    from emulated_cloud.hub.models.files import Array


def write_lora_adapter(
    folder: Path | str, base_folder: Path | str, seed: int = 0, rank: int = 8, base_name: str | None = None
) -> None:
    """Writes a PEFT LoRA adapter for the checkpoint in `base_folder`, on the attention's projections, strong enough to
    change answers. `base_name` is what adapter_config.json calls the base (default: the folder)."""
    folder, base = Path(folder), Path(base_folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(seed, rank)  # not the numbers that the base is made of
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    tensors: dict[str, Array] = {}
    for shard in sorted(base.glob("*.safetensors")):
        for name, entry in read_header(shard)[0].items():
            if name.split(".")[-2] in targets:
                outputs, inputs = entry["shape"]
                prefix = "base_model.model." + name.removesuffix(".weight")
                tensors[f"{prefix}.lora_A.weight"] = random.values((rank, inputs), inputs**-0.5)
                tensors[f"{prefix}.lora_B.weight"] = random.values((outputs, rank), 0.5 * rank**-0.5)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    write_json(
        folder / "adapter_config.json",
        {
            "base_model_name_or_path": base_name or str(base),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        },
    )
    write_card(folder, "Tiny LoRA adapter", library="peft")
