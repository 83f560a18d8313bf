"""Segmentors as ONNX files and as programs of ``torch.export``, checked against the segmentor."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor
from torch.export import Dim

from ..datasets.mask_files import file_ids
from .graph import SegmentationGraph, exportable_positions, normalize_pixels

MAX_ERROR = 1e-4  # of logits, in float32
MIN_PATCHES = 4  # of a side with open size: a map of one cell, behind a pooling, follows other rules
MAX_ONNX = 2_000_000_000  # bytes; a protobuf file ends at 2 GiB
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


class ExportError(RuntimeError):
    """The exported program does not run, or its logits differ from those of the segmentor."""


def export_onnx(
    model: EncoderDecoder, out: str | Path, size: Sequence[int] | None = None, normalize: bool = True
) -> dict[tuple[int, ...], float]:
    """Write an ONNX file and compare it with the segmentor in onnxruntime.

    The file has one input, ``images`` ``(B, 3, H, W)``, and one output, ``logits`` ``(B, C, H, W)``, both float32, for
    any ``B``. Its metadata ``mmseg_davpt`` is JSON: see :func:`describe`.

    Args:
        model: The segmentor, with its weights.
        out: File to write.
        size: (height, width) of images; ``None`` for any multiple of the patch size, from ``MIN_PATCHES`` patches on.
        normalize: Whether images are RGB pixels, 0 to 255. Otherwise they are normalized as the backbone expects.

    Returns:
        Shape of images -> largest absolute error of the logits.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: The segmentor or the size cannot be exported.
        ExportError: The program does not run, or an error is above ``MAX_ERROR``. The file is kept beside ``out``; the
            message names it.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "mmseg-davpt[export]"')
    import onnx
    import onnxruntime

    graph = SegmentationGraph(model, normalize)
    if (number := sum(value.nbytes for value in graph.state_dict().values())) > MAX_ONNX:
        raise ValueError(f'{number / 1e9:.1f} GB of weights do not fit into one ONNX file (2 GB): use --to torch')
    program = _trace(graph, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of the exporter's own use of torch
        exported = torch.onnx.export(
            program, dynamo=True, input_names=['images'], output_names=['logits'], verbose=False, external_data=False
        )
    assert exported is not None
    proto = exported.model_proto
    onnx.helper.set_model_props(proto, {'mmseg_davpt': json.dumps(describe(model, graph, size))})
    partial = _partial(out)
    partial.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(str(partial), providers=['CPUExecutionProvider'])
    return _finish(
        model, graph, size, partial, Path(out), lambda images: session.run(None, {'images': images.numpy()})[0]
    )


def export_torch(
    model: EncoderDecoder, out: str | Path, size: Sequence[int] | None = None, normalize: bool = True
) -> dict[tuple[int, ...], float]:
    """Write a program of ``torch.export`` (``.pt2``), load it again and compare it with the segmentor.

    ``torch.export.load(out).module()`` needs torch alone. ``extra_files={'mmseg_davpt': ''}`` gives the metadata.

    Args, Returns and Raises: as for :func:`export_onnx`; it needs no further package.
    """
    graph = SegmentationGraph(model, normalize)
    program = _trace(graph, size)
    partial = _partial(out)
    torch.export.save(program, partial, extra_files={'mmseg_davpt': json.dumps(describe(model, graph, size))})
    loaded = torch.export.load(partial).module()
    return _finish(model, graph, size, partial, Path(out), lambda images: loaded(images).detach().numpy())


def describe(model: EncoderDecoder, graph: SegmentationGraph, size: Sequence[int] | None) -> dict[str, Any]:
    """What a program without this package needs.

    Returns:
        ``classes`` and ``palette``; ``mask_ids``, the id of each class in a mask file of the dataset; ``size``,
        (height, width) or ``None`` for any multiple of ``patch_size``; ``channels``, the order of the input's channels;
        ``mean`` and ``std`` in pixel values that the caller must normalize with, ``None`` if the program does it.
    """
    meta: Mapping[str, Any] = getattr(model, 'dataset_meta', None) or {}
    classes = [str(name) for name in meta.get('classes') or range(model.decode_head.num_classes)]
    return dict(
        classes=classes,
        palette=np.asarray(meta.get('palette') or []).tolist(),
        mask_ids=file_ids({**meta, 'classes': classes}).tolist(),
        size=None if size is None else list(size),
        patch_size=list(graph.patch_size),
        channels='RGB' if graph.normalize else graph.channels,
        mean=None if graph.normalize else graph.mean.flatten().tolist(),
        std=None if graph.normalize else graph.std.flatten().tolist(),
    )


def _trace(graph: SegmentationGraph, size: Sequence[int] | None) -> torch.export.ExportedProgram:
    """The graph for one size or for all, as a program of torch."""
    patch = graph.patch_size
    _check_size(graph, size)
    dims: dict[int, Any] = {0: Dim('batch', min=1)}
    if size is None:
        # An example: equal sides, or few patches, would be taken for a rule.
        size = 16 * patch[0], 17 * patch[1]
        dims |= {2: patch[0] * Dim('rows', min=MIN_PATCHES), 3: patch[1] * Dim('columns', min=MIN_PATCHES)}
    with torch.no_grad(), exportable_positions():
        return torch.export.export(graph, (torch.zeros(2, 3, *size),), dynamic_shapes={'images': dims}, strict=False)


def _check_size(graph: SegmentationGraph, size: Sequence[int] | None) -> None:
    patch, only = graph.patch_size, graph.only_size
    if size is None and getattr(graph.backbone.trunk, 'rope', None) is not None:
        raise ValueError(
            "this trunk's rotary position codes are computed for one image size: use --size H W in place of --dynamic"
        )
    if only is not None and (size is None or tuple(size) != tuple(only)):
        raise ValueError(f'this trunk takes images of one size: use --size {only[0]} {only[1]} (backbone.img_size)')
    if size is not None and any(side < step or side % step for side, step in zip(size, patch)):
        near = [max(step, round(side / step) * step) for side, step in zip(size, patch)]
        raise ValueError(
            f'--size {size[0]} {size[1]}: each side must be a multiple of the patch size {patch}, for instance '
            f'{near[0]} {near[1]}'
        )


def _partial(out: str | Path) -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f'{out.stem}.unchecked{out.suffix}')


def _finish(
    model: EncoderDecoder,
    graph: SegmentationGraph,
    size: Sequence[int] | None,
    partial: Path,
    out: Path,
    run: Callable[[Tensor], np.ndarray],
) -> dict[tuple[int, ...], float]:
    """Compare for several shapes, then give the file its name."""
    patch = graph.patch_size
    sizes = (
        [tuple(size)] if size is not None else [(MIN_PATCHES * patch[0], 9 * patch[1]), (21 * patch[0], 13 * patch[1])]
    )
    draw = torch.Generator().manual_seed(0)
    errors: dict[tuple[int, ...], float] = {}
    for shape in [(number, 3, *sides) for sides in sizes for number in (1, 3)]:
        images = torch.randint(0, 256, shape, generator=draw).float()
        if not graph.normalize:
            images = images / 64 - 2
        expected = _reference(model, images, graph.normalize).numpy()
        try:
            logits = run(images)
        except Exception as error:
            raise ExportError(
                f'the exported program does not run for images of shape {shape} ({error}): the file is kept as '
                f'{partial}'
            ) from error
        errors[shape] = float(np.abs(logits - expected).max())
        if not errors[shape] <= MAX_ERROR:  # NaN as well
            raise ExportError(
                f'logits of images of shape {shape} differ by {errors[shape]:.1e} from those of the segmentor (the '
                f'largest is {np.abs(expected).max():.1f}), more than {MAX_ERROR:.0e}: the file is kept as {partial}'
            )
    partial.replace(out)
    return errors


@torch.no_grad()
def _reference(model: EncoderDecoder, images: Tensor, normalize: bool) -> Tensor:
    """Logits of the segmentor itself, from RGB pixels or from normalized images."""
    device = next(model.parameters()).device
    images = images.to(device)
    if normalize:
        images = normalize_pixels(model.data_preprocessor, list(images.flip(1)))
    shape = tuple(images.shape[-2:])
    metas = [dict(img_shape=shape, ori_shape=shape, pad_shape=shape)] * len(images)
    return model.eval().encode_decode(images, metas).float().cpu()
