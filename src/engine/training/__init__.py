"""How a candidate is made of prepared rows: when it is due, what it takes, its cache, its fit."""
