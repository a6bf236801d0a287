"""The paper's table, made again: every row trained and scored on the same patients, and what follows from the scores."""
