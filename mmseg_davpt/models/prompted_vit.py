"""``PromptedViT``: a frozen timm ViT with prompts, as an mmseg backbone."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..options import check_bool, check_choice, check_integers, check_mapping, wrong
from ..trunks import build_trunk, resolve_blocks
from ..tuning import (
    TOKEN_GRID,
    BlockActivations,
    DeepPrompts,
    ShallowPrompts,
    TuningMethod,
    build_methods,
    resolve_tuning,
    train_tuned_modules,
    tune_block,
)
from ..tuning.policy import used_parameters
from ..weights import WeightsError, load_trunk_weights
from ..weights.fingerprint import TrunkFingerprint
from ..weights.formats import describe_check
from ..weights.half import HALF, TRUNK_DTYPES, store_frozen
from .trunk_state import add_fingerprint, prepare_state


@MODELS.register_module()
class PromptedViT(BaseModule):
    """A pretrained Vision Transformer of timm, frozen, with the trainable parameters of tuning methods.

    The trunk is timm's own model under its own parameter names (``backbone.trunk.*``). The parameters of each method
    live beside it (``backbone.tuned.METHOD.*``). Blocks before the first trainable parameter build no graph.
    VPT: Jia et al., ECCV 2022; DA-VPT: Ren et al., CVPR 2025.

    Args:
        arch: timm name, e.g. ``vit_base_patch16_224.augreg_in21k``.
        pretrained: ``True`` for timm's hub, a path (formats: ``docs/weights.md``), or ``False``. Read by
            :meth:`init_weights`, never here: a model that loads a full checkpoint needs neither the hub nor a file.
        img_size: Size in pixels that the position table is made for; ``None`` keeps the pretrained table. Every input
            size works with either.
        out_indices: Blocks whose outputs are handed on, ascending; negative ones count from the end.
        prompts: Options of the prompts that ``tuning`` selects: ``num``, ``blocks``, ``init``, ``dropout``, ``gate``
            (:class:`~mmseg_davpt.tuning.DeepPrompts`). They override the preset's.
        norm_outputs: Apply the trunk's final norm to every output, as timm and DINOv2 do for dense heads.
        tuning: What is trained in the trunk: a preset (``'vpt_deep'``, ``'davpt_residual'``, ``'lora'`` ...) or a dict,
            method name -> options. See :func:`~mmseg_davpt.tuning.resolve_tuning` and ``docs/tuning.md``.
        with_cp: Checkpoint the blocks (non-reentrant): less memory, the same gradients.
        drop_path_rate: Stochastic depth of blocks that are trained as a whole.
        allow_random: With ``pretrained=False``: train on a trunk with random weights all the same.
        trunk_dtype: ``'float32'``, ``'bfloat16'``, or ``'float16'`` (GPUs only): type in which frozen weights of linear
            and convolutional layers are stored, and of the autocast in which the trunk runs. The maps are those of
            autocast with float32 weights, bit for bit, in less memory and without a cast of weights in each step.
            Trainable parameters, norms, the residual stream and the guidance stay float32. Gradients of float16 need a
            scaler (``AmpOptimWrapper``).
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH)`` is the same as ``pretrained=PATH``.

    Attributes:
        tuned: Method name -> :class:`~mmseg_davpt.tuning.TuningMethod`.
        method_options: Method name -> its options, as ``tuning`` and ``prompts`` resolve to them.
        weights_loaded: Whether the trunk has the weights of a file, of timm's hub or of a checkpoint.
        weights_check: How the file ``pretrained`` was checked for changed bytes, if at all; empty before it is read.

    Raises:
        ValueError: An option that does not fit the trunk; the message names it.
    """

    def __init__(
        self,
        arch: str,
        pretrained: bool | str = True,
        img_size: int | tuple[int, int] | None = None,
        out_indices: Sequence[int] = (2, 5, 8, 11),
        prompts: Mapping[str, Any] | None = None,
        norm_outputs: bool = True,
        tuning: str | Mapping[str, Any] = 'vpt_deep',
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        allow_random: bool = False,
        trunk_dtype: str = 'float32',
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        norm_outputs = check_bool('backbone.norm_outputs', norm_outputs)
        with_cp = check_bool('backbone.with_cp', with_cp)
        allow_random = check_bool('backbone.allow_random', allow_random)
        trunk_dtype = check_choice('backbone.trunk_dtype', trunk_dtype, TRUNK_DTYPES)
        pretrained = _check_pretrained('backbone.pretrained', pretrained)
        if init_cfg is not None and check_mapping('backbone.init_cfg', init_cfg).get('type') == 'Pretrained':
            if isinstance(pretrained, str):
                raise ValueError('backbone.init_cfg and backbone.pretrained both name weights: give one of them')
            pretrained, init_cfg = _check_pretrained('backbone.init_cfg.checkpoint', init_cfg.get('checkpoint')), None
        if allow_random and pretrained:
            raise ValueError(
                f'backbone.allow_random=True goes with pretrained=False, not with pretrained={pretrained!r}'
            )
        super().__init__(init_cfg)
        self.arch, self.pretrained, self.allow_random, self.norm_outputs = arch, pretrained, allow_random, norm_outputs
        self.trunk = build_trunk(arch, img_size, drop_path_rate)
        if norm_outputs and isinstance(self.trunk.norm, nn.Identity):
            raise ValueError(
                f'backbone.norm_outputs=True, but {arch} has no final norm of its own: set norm_outputs=False'
            )
        self.embed_dims = self.trunk.embed_dim
        self.num_prefix_tokens = self.trunk.num_prefix_tokens
        self.patch_size: tuple[int, int] = self.trunk.patch_embed.patch_size
        blocks = len(self.trunk.blocks)
        out_indices = check_integers('backbone.out_indices', out_indices)
        self.out_indices = resolve_blocks(out_indices, blocks, 'backbone.out_indices')
        if list(self.out_indices) != [index % blocks for index in out_indices]:
            raise wrong('backbone.out_indices', out_indices, 'ascending block indices')
        self.depth = self.out_indices[-1] + 1
        self.weights_loaded = False
        self.weights_check = ''
        self.register_load_state_dict_pre_hook(prepare_state)
        self.register_state_dict_post_hook(add_fingerprint)
        plan = resolve_tuning(tuning, prompts, self.depth)
        self.tuning, self.expects_guidance = tuning, plan.guided
        self.method_options = plan.methods
        # Built here, before any wrapper for distributed training sees the model.
        self.tuned = build_methods(plan, self.trunk, self.depth, norm_outputs)
        for index in range(self.depth if with_cp else 0):
            tune_block(self.trunk, index).with_cp = True
        self.trunk_dtype = trunk_dtype
        store_frozen(self.trunk, TRUNK_DTYPES[trunk_dtype])

    @property
    def _methods(self) -> dict[str, TuningMethod]:
        """``tuned`` with the class of its values, which torch types as ``Module``."""
        return {name: cast(TuningMethod, method) for name, method in self.tuned.items()}

    @property
    def prompts(self) -> DeepPrompts | ShallowPrompts | None:
        """The method with prompts, if any."""
        return next((m for m in self.tuned.values() if isinstance(m, (DeepPrompts, ShallowPrompts))), None)

    @property
    def prompts_initialised(self) -> bool:
        """``False`` while deep prompts wait for their prototypes."""
        return not isinstance(self.prompts, DeepPrompts) or self.prompts.is_ready

    @property
    def prompt_counts(self) -> list[int]:
        """Prompts that join each of the ``depth`` blocks as keys and values; 0 where there are none."""
        return self.prompts.counts() if isinstance(self.prompts, DeepPrompts) else [0] * self.depth

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the blocks in ``out_indices``.

        Args:
            x: Normalized images, ``(B, 3, H, W)``; any size, the trunk pads it to whole patches.

        Returns:
            One map ``(B, D, ceil(H / p), ceil(W / p))`` an index, each covering exactly the unpadded image.

        Raises:
            WeightsError: The trunk's weights were never loaded.
            ValueError: Larger than ``img_size``, for a trunk of one size (BEiT); float16 on a CPU.
            RuntimeError: In training, if prompts still wait for their prototypes.
        """
        self.require_weights()
        if self.training and isinstance(self.prompts, DeepPrompts):
            self.prompts.require_initialised()
        image = x.shape[-2:]
        x = self._fill_up(x)
        h, w = self.trunk.patch_embed.dynamic_feat_size(x.shape[-2:])
        TOKEN_GRID.size = h, w
        try:
            with self._precision(x.device.type):
                tokens = self.trunk.forward_intermediates(
                    x,
                    indices=list(self.out_indices),
                    norm=self.norm_outputs,
                    stop_early=True,
                    output_fmt='NLC',
                    intermediates_only=True,
                )
        finally:
            TOKEN_GRID.size = None
        if self.trunk_dtype != 'float32':  # heads run in their own precision
            tokens = [t.float() for t in tokens]
        maps = [t[:, -h * w :].transpose(1, 2).unflatten(2, (h, w)) for t in tokens]  # shallow prompts stand before
        return tuple(_crop_to_image(m, image, self.patch_size) for m in maps)

    def _precision(self, device: str) -> AbstractContextManager[object]:
        """Autocast to the type of the frozen weights."""
        if self.trunk_dtype == 'float32':
            return nullcontext()
        if self.trunk_dtype == 'float16' and device == 'cpu':
            raise ValueError(
                "backbone.trunk_dtype='float16' runs on GPUs only: on a CPU use 'bfloat16' or 'float32'. Weights and "
                'checkpoints load into either'
            )
        return torch.autocast(device, TRUNK_DTYPES[self.trunk_dtype])

    def _fill_up(self, x: Tensor) -> Tensor:
        """Pad images with zeros, right and below, to the size of a trunk of one size (BEiT)."""
        if not self.trunk.patch_embed.strict_img_size:
            return x
        height, width = self.trunk.patch_embed.img_size
        right, below = width - x.shape[-1], height - x.shape[-2]
        if min(right, below) < 0 or (self.training and max(right, below) > 0):
            raise ValueError(
                f'{self.arch} got {x.shape[-2]}x{x.shape[-1]} pixels, but its table of relative positions is made for '
                f'{height}x{width}: train on crops of that size, test with test_cfg=dict(mode="slide", crop_size='
                f'({height}, {width}), ...), or set img_size'
            )
        return F.pad(x, (0, right, 0, below))

    @contextmanager
    def record(self, blocks: Sequence[int]) -> Iterator[dict[int, BlockActivations]]:
        """While open, a forward pass fills the yielded dict: index of a prompted block -> its activations."""
        activations: dict[int, BlockActivations] = {}
        attentions = [self.trunk.blocks[index].attn for index in blocks]
        for attention in attentions:
            attention.recorder = activations
        try:
            yield activations
        finally:
            for attention in attentions:
                attention.recorder = None

    @contextmanager
    def without_tuning(self) -> Iterator[None]:
        """While open, the trunk runs as if it had no tuning methods; what they train in place keeps its values."""
        with ExitStack() as stack:
            for method in self._methods.values():
                stack.enter_context(method.disabled())
            yield

    def init_weights(self) -> None:
        """Read the pretrained weights (on top of ``init_cfg``, if any).

        Raises:
            WeightsError: They cannot be read or do not fit; see :func:`~mmseg_davpt.trunks.load_trunk_weights`.
        """
        if self.init_cfg is not None:
            super().init_weights()
        if self.pretrained:
            unused = () if self.norm_outputs else ('norm.weight', 'norm.bias')
            print_log(load_trunk_weights(self.trunk, self.arch, self.pretrained, unused), logger='current')
            self.weights_loaded = True
            if self.pretrained is not True:
                self.weights_check = describe_check(Path(self.pretrained))
            for method in self._methods.values():
                method.trunk_loaded()

    def require_weights(self) -> None:
        """Refuse a trunk whose weights are random.

        Raises:
            WeightsError: Neither :meth:`init_weights` nor a checkpoint has loaded the trunk.
        """
        if not (self.weights_loaded or self.allow_random):
            raise WeightsError(
                f'The trunk {self.arch} has random weights: nothing was loaded (pretrained={self.pretrained!r}; no '
                'init_weights(), no checkpoint with the trunk). Set pretrained to True or a path, load a full '
                'checkpoint, or write pretrained=False, allow_random=True if random weights are what you want.'
            )

    def train(self, mode: bool = True) -> PromptedViT:
        """Switch what is trained to train mode; frozen modules stay in eval mode. Returns self."""
        super().train(mode)
        train_tuned_modules(self.trunk, mode)
        return self

    def trainable_parameters(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Name, method and parameter of everything that is trained in the backbone.

        A parameter of the trunk that several methods train in place belongs to the first of them.
        """
        trunk = dict(self.trunk.named_parameters())
        for name, method in self._methods.items():
            yield from ((f'tuned.{name}.{key}', name, parameter) for key, parameter in method.named_parameters())
            for key in sorted(method.trunk_parameters([key for key in trunk if trunk[key].requires_grad])):
                yield f'trunk.{key}', name, trunk.pop(key)

    def frozen_state(self) -> dict[str, Tensor]:
        """Tensors of the trunk that are frozen and that an output depends on, timm name -> tensor."""
        parameters = dict(self.trunk.named_parameters())
        frozen = {
            name
            for name in used_parameters(self.trunk, self.depth, self.norm_outputs)
            if not parameters[name].requires_grad
        }
        state = self.trunk.state_dict()
        return {name: tensor for name, tensor in state.items() if name in frozen or name not in parameters}

    def fingerprint(self) -> TrunkFingerprint:
        """Fingerprint of :meth:`frozen_state`; of tensors in half precision, that of the values that were loaded.

        Raises:
            WeightsError: The trunk's weights were never loaded.
        """
        self.require_weights()
        table = getattr(self.trunk, 'pos_embed', None)
        grid = None if table is None else tuple(self.trunk.patch_embed.grid_size)
        return TrunkFingerprint.of(self.arch, grid, self.frozen_state(), self.trunk.file_digests)

    @torch.no_grad()
    def merged_trunk(self, methods: Collection[str] | None = None) -> dict[str, Tensor]:
        """The trunk's tensors under timm's names, with methods merged in; half precision is raised to float32.

        Args:
            methods: Names of the methods to merge; all by default.

        Raises:
            ValueError: A method cannot be merged, or the model has none of that name; the message says why.
        """
        if unknown := set(methods or ()) - set(self.tuned):
            raise ValueError(f'merged_trunk: no method {sorted(unknown)[0]!r}; the model has {", ".join(self.tuned)}')
        state = {
            name: tensor.to(torch.float32 if tensor.dtype in HALF else tensor.dtype, copy=True)
            for name, tensor in self.trunk.state_dict().items()
        }
        for name, method in self._methods.items():
            if methods is None or name in methods:
                method.merge(state)
        return state


def _check_pretrained(name: str, pretrained: object) -> bool | str:
    if isinstance(pretrained, os.PathLike):
        pretrained = os.fspath(pretrained)
    if not isinstance(pretrained, (bool, str)) or pretrained == '':
        raise wrong(name, pretrained, "True (timm's hub), the path of a file, or False")
    return pretrained


def _crop_to_image(x: Tensor, image: torch.Size, patch: tuple[int, int]) -> Tensor:
    """Undo padding: resample a map ``(B, D, h, w)`` of whole patches so that its cells cover exactly the image.

    Heads stretch a map over the image, so a map that also covers padding would shift everything.
    """
    h, w = x.shape[-2:]
    if image == (h * patch[0], w * patch[1]):
        return x.contiguous()
    scale_y, scale_x = image[0] / (h * patch[0]), image[1] / (w * patch[1])
    theta = torch.tensor([[scale_x, 0.0, scale_x - 1.0], [0.0, scale_y, scale_y - 1.0]], device=x.device)
    with torch.autocast(x.device.type, enabled=False):  # it would round the positions to half precision
        grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode='border', align_corners=False).to(x.dtype)
