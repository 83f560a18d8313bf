"""The notebook runs from top to bottom in a Jupyter kernel, and is stored without outputs."""

import pytest
from conftest import ROOT

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')

NOTEBOOK = ROOT / 'docs/notebooks/first_steps.ipynb'
FAST = """
weights, iterations, images = None, 3, {'training': 6, 'validation': 3}
"""


def read():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_it_is_stored_without_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == 'code']
    assert len(cells) > 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """With few iterations and images, in an empty folder: the masks have classes, the attention is that of prompts."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    notebook = read()
    (settings,) = (i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', []))
    notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(FAST))
    checks = """
assert weights is None and runner.iter == 3
assert all(set(np.unique(prediction)) <= set(range(16)) for _, _, prediction in rows)
assert len(attention.table) == 16 and (attention.assignment >= 0).any()
assert torch.allclose(maps.sum(dim=1), torch.ones(()))  # gated prompts: a softmax of their own
"""
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    nbclient.NotebookClient(notebook, timeout=400, resources={'metadata': {'path': str(tmp_path)}}).execute()
    pictures = [out for cell in notebook.cells for out in cell.get('outputs', []) if 'image/png' in out.get('data', {})]
    assert len(pictures) == 3
    assert (tmp_path / 'work_dirs/first_steps/iter_3.pth').is_file()
