"""``python -m mmseg_davpt COMMAND``: the same as the console command ``mmseg-davpt``."""

from .apis.commands import main

main()
