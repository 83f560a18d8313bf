"""All compatibility shims of the project, each with its reason and the condition for its removal.

:func:`apply` runs when ``mmseg_davpt`` is imported, before the package imports timm (hence torchvision) or mmseg, and
before a Runner is built. A shim that the environment does not need does nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import logging
import pickle
import sys
import types
import warnings
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .packaged import packaged_config

# The operators that a fragment defines disappear with it.
_libraries: list[torch.library.Library] = []


def installed(distribution: str) -> bool:
    """Return whether a distribution of that name is installed."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def apply() -> None:
    """Apply the shims that the environment needs. Idempotent.

    Raises:
        ImportError: mmengine, mmcv or mmseg is missing.
    """
    _require_openmmlab()
    _repair_torchvision()
    _name_mmseg_fork()
    _find_packaged_configs()
    _let_tuning_replace_a_preset()
    _stub_mmcv_ops()
    _allow_upstream_checkpoints()
    _silence_warnings()
    _silence_mmseg_import()
    _name_unreadable_images()
    _weight_classes_beside_ignored_labels()


def _require_openmmlab() -> None:
    """Check OpenMMLab here: the package cannot require it, as two distributions provide each of these names."""
    missing = [name for name in ('mmengine', 'mmcv', 'mmseg') if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'mmseg_davpt needs {", ".join(missing)}: pip install -r requirements.txt (the maintained fork), or '
            'requirements/upstream.txt'
        )
    for name in ('mmengine', 'mmcv', 'mmsegmentation'):
        if installed(name) and installed(f'onedl-{name}'):
            warnings.warn(
                f'{name} and onedl-{name} are both installed and overwrite each other: uninstall both, install one',
                stacklevel=3,
            )


def _repair_torchvision() -> None:
    """Let torchvision import where its compiled operators cannot load.

    Reason: PyPI's torchvision wheel is linked against CUDA; beside a CPU build of torch the import fails with
    ``operator torchvision::nms does not exist``, and so does the import of timm. The project uses none of these
    operators.
    End: when PyPI has a CPU build of torchvision, or torchvision tolerates missing operators.
    """
    try:
        importlib.import_module('torchvision')
        return
    except ModuleNotFoundError:
        return  # timm's error message is clearer
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _libraries.append(library)
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[name]
    importlib.import_module('torchvision')


def _name_mmseg_fork() -> None:
    """Make ``_base_ = 'mmseg::...'`` find the configs of the maintained fork.

    Reason: mmengine looks for a distribution called ``mmsegmentation``; the fork is ``onedl-mmsegmentation``.
    End: when the fork's mmengine looks for the fork's name.
    """
    if installed('onedl-mmsegmentation') and not installed('mmsegmentation'):
        from mmengine.config import utils

        utils.MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def _find_packaged_configs() -> None:
    """Make ``_base_ = 'mmseg_davpt::NAME.py'`` find the configs of this package.

    Reason: mmengine has a fixed table of packages, refuses names without a folder, and would build every part of such a
    config from a registry of the package's name, which does not exist: all parts are in mmseg's.
    End: when packages can register their configs with mmengine.
    """
    from mmengine.config import Config

    find = Config._get_cfg_path
    if getattr(find, 'finds_packaged_configs', False):
        return

    def find_config(cfg_path: str, filename: str) -> tuple[str, str | None]:
        package, _, name = cfg_path.partition('::')
        return (str(packaged_config(name)), None) if package == 'mmseg_davpt' else find(cfg_path, filename)

    find_config.finds_packaged_configs = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(find_config)


def _let_tuning_replace_a_preset() -> None:
    """Let ``tuning=dict(...)`` replace the string of a base config without ``_delete_=True``.

    Reason: mmengine merges a dict only into a dict. A preset has nothing to merge with.
    End: when mmengine lets a dict replace a value of another type.
    """
    from mmengine.config import Config, ConfigDict

    merge = Config._merge_a_into_b
    if getattr(merge, 'replaces_presets', False):
        return

    def merge_configs(a: dict[str, Any], b: Any, allow_list_keys: bool = False) -> Any:
        if isinstance(b, dict) and isinstance(a.get('tuning'), dict) and isinstance(b.get('tuning'), str):
            b = b.copy()
            b['tuning'] = ConfigDict()
        return merge(a, b, allow_list_keys)

    merge_configs.replaces_presets = True  # type: ignore[attr-defined]
    Config._merge_a_into_b = staticmethod(merge_configs)


def _stub_mmcv_ops() -> None:
    """Let upstream mmseg import beside mmcv-lite, which has no compiled operators.

    Reason: mmseg 1.2.2 imports ``mmcv.ops`` in a few heads and losses without a guard; ``mmcv._ext`` is missing in
    mmcv-lite. The stub's operators fail when called, not when imported. mmengine reads ``__spec__``.
    End: with mmseg > 1.2.2; the fork guards these imports.
    """
    if not installed('mmcv-lite') or importlib.util.find_spec('mmcv._ext') is not None:
        return

    class MissingOps(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith('__'):
                raise AttributeError(name)

            def missing(*args: Any, **kwargs: Any) -> None:
                raise NotImplementedError(f'{name} is a compiled operator of mmcv; mmcv-lite has none: install mmcv')

            return missing

    stub = MissingOps('mmcv._ext')
    stub.__spec__ = importlib.util.spec_from_loader('mmcv._ext', loader=None)
    sys.modules['mmcv._ext'] = stub


def _allow_upstream_checkpoints() -> None:
    """Let upstream mmengine resume its checkpoints under torch >= 2.6.

    Reason: torch.load then defaults to ``weights_only=True``, and mmengine 0.10.7 keeps HistoryBuffer objects and NumPy
    arrays in its checkpoints. These types are allowed for the whole process; the check itself stays on.
    End: when upstream mmengine allows them itself, as the fork does.
    """
    if not installed('mmengine') or not hasattr(torch.serialization, 'add_safe_globals'):
        return
    torch.serialization.add_safe_globals(checkpoint_types())


# Starts of warnings about which users of this project can do nothing -> why.
_SILENT_WARNINGS = {
    r'Fail to import ``MultiScaleDeformableAttention``': 'mmcv-lite has no operators; heads that need them name it',
    r'The draw is False, it means that the': 'pictures of this hook are off in every training',
    r'`reduce_zero_label` will be deprecated': "mmseg's own configs set it there",
    r'Default ``avg_non_ignore`` is False': "mmseg's default, which its own configs and results use",
}
_SILENT_LINES = {
    '"FileClient" will be deprecated': "mmengine's own CheckpointHook uses it",
    '"HardDiskBackend" is the alias': "mmengine's own CheckpointHook uses it",
    'The prefix is not set in metric class': 'mIoU is called mIoU; a prefix would rename it in every table',
}


def _silence_warnings() -> None:
    """Drop warnings of dependencies about which a user can do nothing.

    Reason: they come before every training, from code that no config changes; each of ``_SILENT_WARNINGS`` says why.
    End: when mmcv and mmseg no longer warn.
    """
    for start in _SILENT_WARNINGS:
        warnings.filterwarnings('ignore', message=start, category=UserWarning)


def _silence_mmseg_import() -> None:
    """Import mmseg's datasets without the line ``Could not import OneDL``; print what else they print.

    Reason: the fork prints it twice where an optional package for remote data is missing, which nothing here uses.
    End: when the fork logs it, as it means to: it names the level DEBUG, but no logger.
    """
    if 'mmseg.datasets' in sys.modules:
        return
    printed = io.StringIO()
    with redirect_stdout(printed):
        importlib.import_module('mmseg.datasets')
    for line in printed.getvalue().splitlines():
        if line != 'Could not import OneDL':
            print(line)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a record of mmengine's logger says something that a user can act on; a filter for its handlers.

    Reason: deprecation warnings about calls that mmengine makes itself; each of ``_SILENT_LINES`` says why.
    End: when mmengine no longer makes these calls.
    """
    return not record.getMessage().startswith(tuple(_SILENT_LINES))


def _name_unreadable_images() -> None:
    """Let mmcv's ``LoadImageFromFile`` name the image in every error.

    Reason: it names a file that opencv cannot find, but passes on opencv's exceptions, which name none (an empty
    file, a header of too many pixels). Validation and test pipelines cannot use another transform: mmseg's inference
    functions look for this name.
    End: when mmcv names the file.
    """
    from mmcv.transforms import LoadImageFromFile

    transform = LoadImageFromFile.transform
    if hasattr(transform, '__wrapped__'):
        return

    @functools.wraps(transform)
    def named(self: LoadImageFromFile, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            loaded: dict[str, Any] | None = transform(self, results)
        except Exception as error:  # a decoder may raise any exception
            path, reason = str(results['img_path']), str(error).strip()
            if path in reason:
                raise
            raise ValueError(f'image {path}: cannot be read ({type(error).__name__}: {reason[:200]})') from error
        return loaded

    LoadImageFromFile.transform = named


def _weight_classes_beside_ignored_labels() -> None:
    """Let mmseg's ``CrossEntropyLoss`` take ``class_weight`` where labels are ignored, as torch's does.

    Reason: upstream looks up the weight of class 255; the fork fails with ``avg_non_ignore=True`` only.
    End: when mmseg divides by the weights of the labels that count.
    """
    module: Any = importlib.import_module('mmseg.models.losses.cross_entropy_loss')
    cross_entropy = module.cross_entropy
    if hasattr(cross_entropy, '__wrapped__'):
        return

    @functools.wraps(cross_entropy)
    def weighted(pred: torch.Tensor, label: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        weights, reduction = options.get('class_weight'), options.get('reduction', 'mean')
        if weights is not None and options.get('avg_factor') is None and reduction == 'mean':
            options['avg_factor'] = weights[label[label != options.get('ignore_index', -100)]].sum()
        loss: torch.Tensor = cross_entropy(pred, label, *args, **options)
        return loss

    module.cross_entropy = weighted


# What HistoryBuffer registers as statistics. Not read from its table, to which a checkpoint adds.
_STATISTICS = ('current', 'max', 'mean', 'min')


def checkpoint_types() -> list[Any]:
    """Return what mmengine's checkpoints hold beside tensors: its HistoryBuffer, and NumPy arrays.

    Returns:
        Entries for :func:`torch.serialization.add_safe_globals`: types, functions, or tuples (function, its name in a
        file).
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    # Their module changed with NumPy 2.
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ('f8', 'f4', 'i8', 'i4', 'u4', 'u1', 'b1')]
    bounded = (bounded_getattr, 'builtins.getattr')
    return [HistoryBuffer, bounded, np.ndarray, np.dtype, reconstruct, scalar, *dtypes]


def bounded_getattr(owner: object, name: object) -> Any:
    """Take the place of ``getattr`` while torch reads a checkpoint.

    HistoryBuffer pickles its statistics as ``getattr(HistoryBuffer, NAME)``. With ``getattr`` itself a file reaches
    ``eval``, through ``getattr.__self__`` or the ``__globals__`` of any function.

    Args:
        owner: ``HistoryBuffer``.
        name: The name of one of its statistics: ``'current'``, ``'max'``, ``'mean'`` or ``'min'``.

    Returns:
        The statistic, a function.

    Raises:
        pickle.UnpicklingError: Any other arguments.
    """
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and isinstance(name, str) and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'Unsupported global: GLOBAL builtins.getattr of {name!r}: only HistoryBuffer and its statistics are '
        f'allowed ({", ".join(_STATISTICS)})'
    )
