"""Distributed training, by the bytes that pass the collectives; and the memory of a large trunk, by tensor."""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from mmseg_davpt.apis import leave_process_group, load_config
from mmseg_davpt.models import PromptedViT
from mmseg_davpt.tuning import DeepPrompts

from .assignment import exchanged_bytes, format_exchange
from .goals import table
from .measure import MB, fresh_processes, peak_memory
from .trunk import build_case
from .workload import TINY, Workload, samples

GB = 1e9
KINDS = ('frozen', 'trainable', 'gradients', 'moments', 'activations')
DEVICE_MEMORY = 24  # GB
MEASURED = 'residual DA-VPT, bfloat16 trunk'  # the case of the measured step
_CROP = 64  # pixels: the bytes do not depend on the size of images
_ALL_REDUCE = dist.all_reduce


def counted_exchange(config: str | Path, ranks: int) -> dict[str, Any]:
    """Bytes that each rank hands to collectives in one training step of a config, over gloo processes on this CPU.

    Gradients are counted by a communication hook of ``DistributedDataParallel``, other exchanges at the functions of
    ``torch.distributed``.

    Args:
        config: A config of a segmentor; its trunk gets random weights.
        ranks: Number of processes.

    Returns:
        ``config``, ``ranks``, ``gradients`` and ``others`` (the class statistics and batch norms), and ``expected``, by
        :func:`~benchmarks.speed.exchanged_bytes`.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = fresh_processes().get_start_method()
        torch.multiprocessing.start_processes(_rank, (ranks, folder, str(config)), nprocs=ranks, start_method=start)
        counts = [json.loads(path.read_text()) for path in sorted(Path(folder).glob('*.json'))]
    assert len(counts) == ranks and all(count == counts[0] for count in counts)
    expected = sum(exchanged_bytes(config).values())
    return dict(config=Path(config).stem, ranks=ranks, expected=expected, **counts[0])


def _rank(rank: int, ranks: int, folder: str, config: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = DistributedDataParallel(_segmentor(config), broadcast_buffers=False)
    counts = Counter(gradients=0, others=0)

    # Without annotations: DistributedDataParallel compares them, and here they are text.
    def send(_, bucket):  # noqa: ANN001, ANN202
        counts['gradients'] += bucket.buffer().nbytes
        future = _ALL_REDUCE(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / ranks)

    def count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        counts['others'] += tensor.nbytes
        return _ALL_REDUCE(tensor, *args, **kwargs)

    model.register_comm_hook(None, send)
    torch.manual_seed(rank)
    images = torch.randn(2, 3, _CROP, _CROP)
    data = samples(torch.randint(model.module.num_classes, (2, _CROP, _CROP)))
    with mock.patch.object(dist, 'all_reduce', count):
        losses = model(images, data, mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
    Path(folder, f'{rank}.json').write_text(json.dumps(counts))
    leave_process_group()


def _segmentor(config: str) -> nn.Module:
    """The segmentor of a config with random weights, ready for a training step on a CPU."""
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    cfg.model.backbone.update(pretrained=False, allow_random=True)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    for part in getattr(getattr(model, 'guidance', None), 'assignments', ()):
        part.assignment.copy_(torch.arange(len(part.assignment)) % len(part.centroids))
    if isinstance(model.backbone.prompts, DeepPrompts):
        model.backbone.prompts.mark_initialised()
    return model


def large_trunk(arch: str, size: int, batches: Sequence[int]) -> dict[str, Any]:
    """Bytes of a training step of a trunk with 20 residual prompts per block, and of full tuning; nothing is computed.

    Args:
        arch: timm name.
        size: Height and width of the images in pixels.
        batches: Batch sizes.

    Returns:
        ``arch``, ``size``, ``parameters`` of the trunk, and ``rows``: ``kind``, ``batch`` and bytes of ``frozen`` and
        ``trainable`` parameters, ``gradients``, AdamW's ``moments``, and ``activations`` that the backward pass needs.
    """
    rows, parameters = [], 0
    for kind, options in LARGE.items():
        for batch in batches:
            with torch.device('meta'):
                model = PromptedViT(arch, pretrained=False, allow_random=True, img_size=size, **options).train()
            with FakeTensorMode():
                _pretend(model)
                parameters = sum(p.numel() for p in model.trunk.parameters())
                activations = _kept_for_backward(model, torch.zeros(batch, 3, size, size))
                trainable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
                frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
            rows.append(
                dict(
                    kind=kind,
                    batch=batch,
                    frozen=frozen,
                    trainable=trainable,
                    gradients=trainable,
                    moments=2 * trainable,
                    activations=activations,
                )
            )
    return dict(arch=arch, size=size, parameters=parameters, rows=rows)


def measured_step(arch: str, size: int) -> dict[str, Any]:
    """Memory of steps of one image with AdamW, measured on this CPU.

    Args:
        arch: timm name.
        size: Height and width of the image in pixels.

    Returns:
        ``size``, and bytes: ``measured``, growth of the resident set at its peak; ``expected``, by :func:`large_trunk`.
    """
    work = functools.partial(Workload, size=size)
    builds = (functools.partial(build_case, MEASURED, work(name)) for name in (arch, TINY))
    expected = large_trunk(arch, size, (1,))['rows'][0]
    measured = MB * peak_memory(*builds)['growth_adamw']
    return dict(size=size, measured=measured, expected=sum(expected[kind] for kind in KINDS))


_PROMPTS: dict[str, Any] = dict(tuning='vpt_residual', prompts=dict(num=20), out_indices=(-1,))
LARGE: dict[str, dict[str, Any]] = {
    'residual prompts, bfloat16 trunk': _PROMPTS | dict(trunk_dtype='bfloat16'),
    'the same, with_cp': _PROMPTS | dict(trunk_dtype='bfloat16', with_cp=True),
    'residual prompts, float32 trunk': _PROMPTS,
    'full tuning, float32': dict(tuning='full', prompts=None, out_indices=(-1,)),
}


def _pretend(model: nn.Module) -> None:
    """Replace the tensors of a model by those of the present mode, which has shapes on a CPU and no values."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _kept_for_backward(model: PromptedViT, images: Tensor) -> int:
    """Bytes of the tensors that autograd keeps, each storage once, without parameters."""
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}  # storages stay alive, so that their addresses stay different

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)
    assert outputs[-1].requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def format_scale(results: Mapping[str, Any]) -> str:
    """Results of :func:`counted_exchange`, the projection and :func:`large_trunk` as Markdown."""
    lines = []
    for row in results['exchange']:
        total = row['gradients'] + row['others']
        figures = (f'{row[key] / MB:.3f}' for key in ('gradients', 'others', 'expected'))
        lines.append((row['config'], row['ranks'], *figures, 'yes' if total == row['expected'] else 'no'))
    head = ('config', 'gloo ranks', 'gradients, MB', 'class statistics, MB', 'arithmetic, MB', 'equal')
    text = f'{table(head, lines)}\n\nPer rank and step, counted at the collectives.\n\n'
    text += format_exchange(results['projection'])
    trunk = results['trunk']
    lines = []
    for row in trunk['rows']:
        total = sum(row[kind] for kind in KINDS)
        figures = (f'{row[kind] / GB:.3f}' for kind in KINDS)
        lines.append((row['kind'], row['batch'], *figures, f'{total / GB:.1f}', _fits(total)))
    head = ('trunk', 'B', *(f'{kind}, GB' for kind in KINDS), 'sum, GB', f'in {DEVICE_MEMORY} GB')
    return (
        f'{text}\n\n{trunk["arch"]}, {trunk["parameters"] / 1e6:.0f} M parameters, {trunk["size"]}x{trunk["size"]}, '
        f'without a head. Arithmetic from the shapes of all tensors, not measured:\n\n{table(head, lines)}\n\n'
        'Activations are what autograd keeps for the backward pass. What operators need for a moment comes on top: '
        f'the last column leaves 10 % of {DEVICE_MEMORY} GB for it.{_measured(results["step"])}'
    )


def _measured(step: Mapping[str, Any] | None) -> str:
    if step is None:
        return ''
    return (
        f'\n\nMeasured on this CPU: {step["measured"] / GB:.2f} GB for steps of one image of '
        f'{step["size"]}x{step["size"]} ({MEASURED}, AdamW); the arithmetic for this size gives '
        f'{step["expected"] / GB:.2f} GB.'
    )


def _fits(size: float) -> str:
    return 'yes' if size <= 0.9 * DEVICE_MEMORY * GB else 'no'
