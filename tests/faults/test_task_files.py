"""Damaged and hostile task files: thousands of cases. The fast selection is in tests/tasks/test_file.py."""

import random
import struct

import pytest
from small_tasks import damage, make_task, save_trunk

pytestmark = pytest.mark.faults


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('task')
    make_task(folder / 'a.task.safetensors', save_trunk(folder / 'trunk.safetensors'), guidance=True)
    return folder / 'a.task.safetensors'


def test_every_byte_of_the_header_and_a_thousand_of_the_body(task, tmp_path):
    data = task.read_bytes()
    end = 8 + struct.unpack('<Q', data[:8])[0]
    padding = end - len(data[:end].rstrip(b' '))
    header = damage(tmp_path / 'x.task.safetensors', task, range(end))
    body = damage(tmp_path / 'x.task.safetensors', task, random.Random(0).sample(range(end, len(data)), 1000))
    print(f'\none bit of each of {end} bytes of the header: {header}; of 1,000 bytes of the body: {body}')
    assert body == dict(refused=1000, same=0)
    assert header['same'] <= padding  # other white space at the end
