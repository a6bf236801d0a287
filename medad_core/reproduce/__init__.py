"""The paper's table, made again: every row is trained and scored on the same patients, and measured alike."""
