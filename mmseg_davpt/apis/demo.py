"""A web page to try task files, by gradio, which also serves the same functions to programs."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ..datasets.image_files import ImageFileError
from ..options import wrong
from ..reports.overlay import draw_heat
from .segmenter import Segmentation, TaskSegmenter

MAX_PIXELS = 2**22  # of an image: results of all sessions stay in memory
MAX_IMAGES = 16  # of one call
MAX_FILE_SIZE = '20mb'
QUEUE = 32  # calls that wait; further ones are refused
SESSIONS = 50  # whose last results are kept
_MINUTES = 30  # how long results and served files are kept
_KEPT_MASKS = 4 * MAX_IMAGES
_BUTTONS: Any = ['download', 'fullscreen']  # of pictures; gradio's third one uploads to a public site


def build_demo(segmenter: TaskSegmenter, title: str = 'Segment images') -> gr.Blocks:
    """Build the page.

    Choose a task, drop images, see the overlay, choose a class to see the attention of its prompt, download the index
    masks. Programs call the same functions through ``gradio_client``: ``/segment``, ``/overlay``, ``/attention``.

    Args:
        segmenter: With at least one task.
        title: Title of the page.

    Raises:
        ValueError: The segmenter has no task.
    """
    names = list(segmenter.tasks)
    if not names:
        raise ValueError('the demo needs a task: TaskSegmenter.load(FILE), or add_task(NAME, FILE)')
    service = _Service(segmenter)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_MINUTES * 60, _MINUTES * 60)) as page:
        gr.Markdown(f'# {title}')
        results = gr.State([], time_to_live=_MINUTES * 60)
        with gr.Row():
            with gr.Column(scale=1):
                task = gr.Dropdown(names, value=names[0], label='Task')
                files = gr.File(file_count='multiple', file_types=['image'], label=f'Images (at most {MAX_IMAGES})')
                opacity = gr.Slider(0, 1, value=0.5, step=0.05, label='Opacity of the classes')
                button = gr.Button('Segment', variant='primary')
                masks = gr.File(file_count='multiple', label='Index masks (PNG)', interactive=False)
            with gr.Column(scale=2):
                gallery = gr.Gallery(
                    label='Classes', columns=2, object_fit='contain', interactive=False, format='png', buttons=_BUTTONS
                )
                classes = gr.Radio([], label='Attention to the prompt of a class (first image)', interactive=True)
                attention = gr.Image(label='Attention', interactive=False, format='png', buttons=_BUTTONS)
        outputs = [results, gallery, masks, classes, attention]
        button.click(service.segment, [files, task, opacity], outputs, api_name='segment')
        opacity.release(service.draw, [results, opacity], gallery, api_name='overlay')
        classes.select(service.attention, [results, classes], attention, api_name='attention')
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    return page


class _Service:
    """What page and programs call. Errors of the input reach them as ``gr.Error``, with their text."""

    def __init__(self, segmenter: TaskSegmenter) -> None:
        self.segmenter = segmenter
        self._folder = tempfile.TemporaryDirectory(prefix='mmseg_davpt_demo_')
        self._masks: deque[Path] = deque()  # gradio serves copies: only the newest are kept here

    def segment(
        self, files: list[str] | None, task: str, opacity: float = 0.5
    ) -> tuple[list[Segmentation], list[np.ndarray], list[str], Any, None]:
        """Segment images.

        Args:
            files: Image files.
            task: Name of the task.
            opacity: Of the classes in the overlays, in [0, 1].

        Returns:
            The results (kept on the server), overlays, index masks (PNG), the classes that occur, and no attention.
        """
        if not files:
            raise gr.Error('Drop an image first.')
        if len(files) > MAX_IMAGES:
            raise gr.Error(f'{len(files)} images: at most {MAX_IMAGES} at once.')
        try:
            results = self.segmenter(files, task=task)
        except (ImageFileError, ValueError) as error:
            raise gr.Error(str(error)) from error
        occur = sorted({int(index) for result in results for index in np.unique(result.mask)})
        classes = gr.Radio([results[0].names[index] for index in occur], value=None)
        masks = [self._write(result.mask, f'{Path(file).stem}_{task}') for file, result in zip(files, results)]
        return results, self.draw(results, opacity), masks, classes, None

    def draw(self, results: list[Segmentation], opacity: float) -> list[np.ndarray]:
        """Overlays of the images that were segmented last.

        Args:
            results: The results.
            opacity: Of the classes, in [0, 1].
        """
        return [result.overlay(opacity) for result in results]

    def attention(self, results: list[Segmentation], name: str) -> np.ndarray | None:
        """Attention of the first image to the prompt of a class, drawn over the image.

        Args:
            results: The results.
            name: Name of the class.
        """
        if not results:
            return None
        try:
            weights = self.segmenter.attention(results[0].image, name, results[0].task)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        return draw_heat(results[0].image, weights)

    def _write(self, mask: np.ndarray, name: str) -> str:
        path = Path(tempfile.mkdtemp(dir=self._folder.name), f'{name}.png')
        Image.fromarray(mask).save(path)
        self._masks.append(path)
        while len(self._masks) > _KEPT_MASKS:
            shutil.rmtree(self._masks.popleft().parent, ignore_errors=True)
        return str(path)


def check_auth(value: str | None) -> tuple[str, str] | None:
    """Read ``USER:PASSWORD``.

    Raises:
        ValueError: It has no colon, or a part is empty.
    """
    if value is None:
        return None
    user, _, password = value.partition(':')
    if not (user and password):
        raise wrong('--auth', '***', 'USER:PASSWORD')
    return user, password
