"""Writes the instruction set that teaches the controller: ``python -m training.instructions --out FILE``.

Rows have the format of ``benchmarks/data/controller.md`` and ``split``. The words lie in ``data/LANGUAGE/``:
``nouns.txt``, ``scenes.txt``, ``lists.txt`` and ``templates*.txt``; their grammar is in ``grammar.py``. Labels stand
above the templates and are never guessed from what was filled in.
"""
