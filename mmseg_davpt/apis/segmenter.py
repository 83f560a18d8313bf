"""``TaskSegmenter``: one frozen trunk in memory, many tasks on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from mmengine.dataset import Compose
from mmseg.models import BaseSegmentor
from torch.nn.functional import interpolate

from ..datasets.image_files import MAX_PIXELS
from ..options import wrong
from ..reports import attention_maps
from ..reports.overlay import draw_overlay
from ..tasks import TaskFileError, TaskInfo
from ..tasks.file import SUFFIX
from ..tasks.hub import fetch_task, push_to_hub, save_task_folder
from ..tasks.mixture import TASK, MixedSegmentor, can_mix, same_inputs
from ..tasks.model import build_task, share_trunk
from .images import ImageLike, to_rgb
from .prediction import predict


@dataclass(frozen=True)
class Segmentation:
    """Result of one image.

    Attributes:
        mask: Class ids, ``(H, W)``, uint8 (uint16 for more than 256 classes). Ids index ``names``.
        scores: Probability of the class at each pixel, ``(H, W)``, float32 in [0, 1].
        names: Name of each class.
        palette: Color of each class: red, green, blue.
        image: The image, RGB, ``(H, W, 3)``, uint8, turned by its EXIF orientation.
        task: Name of the task.
    """

    mask: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: np.ndarray
    task: str

    def overlay(self, opacity: float = 0.5, legend: bool = True) -> np.ndarray:
        """Draw the classes over the image.

        Args:
            opacity: Of the classes, in [0, 1].
            legend: Draw names and colors of the classes that occur below the image.

        Returns:
            RGB, uint8, ``(H, W, 3)``; taller with a legend.
        """
        return draw_overlay(self.image, self.mask, self.names, self.palette, opacity, legend)


class TaskSegmenter:
    """Segments images by the tasks of task files, all on one trunk.

    ::

        model = TaskSegmenter.load('streets.task.safetensors', trunk='vit_s14.safetensors')
        result = model('photo.jpg')
        model.add_task('fashion', 'fashion.task.safetensors')
        model(['a.jpg', 'b.jpg'], tasks=['fashion', 'streets'])

    Each task is a segmentor whose trunk uses the same tensors as that of the first task, wherever they are equal (tuned
    biases or norms belong to the task). So there is nothing to switch, calls from several threads do not disturb one
    another, and each image passes the trunk once. Images of one call are batched by size, also across tasks: the trunk
    runs on the whole batch, with the prompts of each image's task. Tasks that train tensors of the trunk in place, and
    tasks with other windows or another normalization, have a batch of their own.

    Args:
        trunk: Weights of the trunk: the path of a file (``docs/weights.md``), or ``'timm'`` for timm's hub.
        device: Device of all models.
        batch_size: Most images in one forward pass.
        max_pixels: Largest number of pixels of an image.
    """

    def __init__(
        self, trunk: str | Path = 'timm', device: str = 'cpu', batch_size: int = 8, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.trunk, self.device, self.batch_size, self.max_pixels = trunk, device, batch_size, max_pixels
        self._tasks: dict[str, _Task] = {}
        self._adding = threading.Lock()

    @classmethod
    def load(
        cls, path: str | Path, trunk: str | Path = 'timm', name: str | None = None, **options: Any
    ) -> TaskSegmenter:
        """Load a first task.

        Args:
            path: The task file.
            trunk: See :class:`TaskSegmenter`.
            name: Name of the task; by default the name of the file without ``.task.safetensors``.
            **options: Other options of :class:`TaskSegmenter`.

        Raises:
            FileNotFoundError, TaskFileError, WeightsError: See :meth:`add_task`.
        """
        segmenter = cls(trunk, **options)
        segmenter.add_task(name or Path(path).name.removesuffix(SUFFIX), path)
        return segmenter

    @classmethod
    def from_pretrained(
        cls,
        repo: str | Path,
        trunk: str | Path = 'timm',
        name: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> TaskSegmenter:
        """Load a first task from the Hugging Face Hub, or from a folder of :meth:`save_pretrained`.

        Args:
            repo: ``USER/NAME``, or a folder.
            trunk: See :class:`TaskSegmenter`.
            name: Name of the task; by default ``NAME``.
            revision: Branch, tag or commit on the Hub.
            token: Token of the Hub; by default that of ``hf auth login``.
            **options: Other options of :class:`TaskSegmenter`.

        Raises:
            FileNotFoundError, TaskFileError, WeightsError: See :meth:`add_task`.
        """
        path = fetch_task(repo, revision, token)
        return cls.load(path, trunk, name or Path(repo).name, **options)

    def save_pretrained(self, folder: str | Path, task: str | None = None, **options: Any) -> Path:
        """Write the task file of a task and a model card to a folder.

        Args:
            folder: Folder to write to.
            task: Name of the task; the first one by default.
            **options: ``license`` and ``datasets`` for the card (:func:`~mmseg_davpt.tasks.hub.save_task_folder`).

        Returns:
            The task file.
        """
        return save_task_folder(self._find(task).path, folder, **options)

    def push_to_hub(self, repo: str, task: str | None = None, **options: Any) -> str:
        """Upload the task file of a task and a model card.

        Args:
            repo: ``USER/NAME``.
            task: Name of the task; the first one by default.
            **options: See :func:`~mmseg_davpt.tasks.hub.push_to_hub`.

        Returns:
            Address of the commit.
        """
        return push_to_hub(self._find(task).path, repo, **options)

    def add_task(self, name: str, path: str | Path) -> None:
        """Add a task, or replace the one of that name.

        Args:
            name: Name of the task in calls.
            path: The task file. Nothing in it is executed.

        Raises:
            FileNotFoundError: There is no such file.
            TaskFileError: It is damaged or hostile, or of another architecture than the first task.
            WeightsError: The trunk cannot be loaded, or is another one than that of the task.
        """
        with self._adding:
            others = list(self._tasks.values())
            info, model = build_task(path, self.trunk)
            if others and others[0].info.arch != info.arch:
                raise TaskFileError(f'{path} belongs to {info.arch}, the tasks before to {others[0].info.arch}')
            model = model.to(self.device)
            if others:
                share_trunk(model, others[0].model)
            mixed = (t.mixture for t in others if same_inputs(t.info, info) and can_mix(t.model, model))
            self._tasks = {**self._tasks, name: _Task(name, Path(path), info, model, next(mixed, object()))}

    def remove_task(self, name: str) -> None:
        """Remove a task. The trunk stays as long as there is a task.

        Raises:
            ValueError: There is no task of that name.
        """
        with self._adding:
            self._find(name)
            self._tasks = {key: task for key, task in self._tasks.items() if key != name}

    @property
    def tasks(self) -> dict[str, TaskInfo]:
        """Name -> description of each task, in the order in which they were added."""
        return {name: task.info for name, task in self._tasks.items()}

    @overload  # an array and a tensor are sequences, but no sequences of images
    def __call__(self, images: ImageLike, task: str | None = None) -> Segmentation: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(
        self, images: Sequence[ImageLike], task: str | None = None, tasks: Sequence[str] | None = None
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        task: str | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image or several.

        Args:
            images: A path, a PIL image, an array ``(H, W, 3)`` or ``(H, W)`` (RGB or gray, uint8), or a tensor
                ``(3, H, W)`` (RGB; uint8, or float in [0, 1]); or a list of them.
            task: Task of all images; the first one by default.
            tasks: Task of each image, in place of ``task``.

        Returns:
            One result, or a list of them in the order of the images.

        Raises:
            ValueError: An unknown task, or another number of tasks than of images.
            ImageFileError: A file cannot be read as an image.
            TypeError: Something else than an image.
        """
        if not isinstance(images, (list, tuple)):
            if tasks is not None:
                raise ValueError('tasks goes with a list of images: give task for one image')
            return self._segment([cast(ImageLike, images)], [self._find(task)])[0]
        if tasks is not None and (task is not None or len(tasks) != len(images)):
            raise ValueError(f'expected either task, or tasks with a name for each of {len(images)} images')
        names = [task] * len(images) if tasks is None else list(tasks)
        return self._segment(images, [self._find(name) for name in names])

    def attention(self, image: ImageLike, name: str, task: str | None = None, block: int | None = None) -> np.ndarray:
        """Attention of an image's patches to the prompt of a class.

        Args:
            image: See :meth:`__call__`.
            name: Name of the class.
            task: Name of the task; the first one by default.
            block: Index of a guided block; the last one by default.

        Returns:
            Attention weights, mean over heads, in [0, 1], ``(H, W)``, float32, resized to the image.

        Raises:
            ValueError: An unknown class or task, or a task whose classes have no prompts (``assigned_prompts``).
        """
        found = self._find(task)
        info, vit = found.info, found.model.backbone
        if name not in info.classes:
            raise wrong('name', name, f'one of {", ".join(map(repr, info.classes))}')
        guided = sorted(map(int, info.assigned_prompts))
        if not guided or (block is not None and block not in guided):
            raise ValueError(
                f'task {found.name!r}: only classes in blocks {guided or "none"} have prompts: train guided ones'
            )
        block = guided[-1] if block is None else block
        prompt = info.assigned_prompts[str(block)][info.classes.index(name)]
        if prompt < 0:
            raise ValueError(f'task {found.name!r}: {name!r} was in no training image, and has no prompt')
        sample = found.prepare(to_rgb(image, self.max_pixels))
        batch = found.model.data_preprocessor(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))
        index = sorted(vit.prompts.blocks).index(block)
        (maps,) = attention_maps(found.model, batch['inputs'], [index]).values()
        shape = sample['data_samples'].ori_shape
        resized = interpolate(maps[:, prompt, None].float(), shape, mode='bilinear', align_corners=False)
        return resized[0, 0].numpy()

    def _find(self, name: str | None) -> _Task:
        tasks = self._tasks
        if not tasks:
            raise ValueError('no task was added: TaskSegmenter.load(FILE), or add_task(NAME, FILE)')
        if name is None:
            return next(iter(tasks.values()))
        if name not in tasks:
            raise wrong('task', name, f'one of {", ".join(map(repr, tasks))}')
        return tasks[name]

    def _segment(self, images: Sequence[ImageLike], tasks: Sequence[_Task]) -> list[Segmentation]:
        pixels = [to_rgb(image, self.max_pixels) for image in images]
        samples = [task.prepare(image) for task, image in zip(tasks, pixels)]
        results: dict[int, Segmentation] = {}
        for indices in _batches(tasks, samples, self.batch_size):
            model = _batch_model([tasks[index] for index in indices], [samples[index] for index in indices])
            predictions = predict(model, [samples[index] for index in indices], with_scores=True)
            for index, (mask, scores) in zip(indices, predictions):
                assert scores is not None
                task = tasks[index]
                dtype = np.uint8 if len(task.info.classes) <= 256 else np.uint16
                results[index] = Segmentation(
                    mask.astype(dtype), scores, task.info.classes, task.info.palette, pixels[index], task.name
                )
        return [results[index] for index in range(len(images))]


class _Task:
    """A task, ready to run.

    Args:
        name: Its name.
        path: Its file.
        info: Its description.
        model: Its segmentor.
        mixture: The same object for tasks whose images can share a batch.
    """

    def __init__(self, name: str, path: Path, info: TaskInfo, model: BaseSegmentor, mixture: object) -> None:
        self.name, self.path, self.info, self.model, self.mixture = name, path, info, model, mixture
        resize = [dict(info.resize, type='Resize', scale=tuple(info.resize['scale']))] if info.resize else []
        self._pipeline = Compose([*resize, dict(type='PackSegInputs')])

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """An RGB image, as the test pipeline of the training hands it to the model."""
        bgr = np.ascontiguousarray(image[..., ::-1])  # mmcv reads BGR
        shape = bgr.shape[:2]
        return cast(dict[str, Any], self._pipeline(dict(img=bgr, img_shape=shape, ori_shape=shape, img_path='')))


def _batches(tasks: Sequence[_Task], samples: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """Indices of images that one forward pass can take: tasks that mix, one size of the model's input."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, (task, sample) in enumerate(zip(tasks, samples)):
        key = id(task.mixture), *sample['inputs'].shape, *sample['data_samples'].ori_shape
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _batch_model(tasks: Sequence[_Task], samples: Sequence[Mapping[str, Any]]) -> BaseSegmentor:
    """The model of a batch; where its images belong to different tasks, each sample gets the index of its task."""
    different = list(dict.fromkeys(tasks))
    if len(different) == 1:
        return different[0].model
    for task, sample in zip(tasks, samples):
        sample['data_samples'].set_metainfo({TASK: different.index(task)})
    return MixedSegmentor([task.model for task in different])
