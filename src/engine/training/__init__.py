"""How a candidate is made of prepared rows, planned by ``stages/train.py``: what it takes, its cache, its fit."""
