"""Incremental cohorts: which studies of an inbox are new or changed, which batch screened each, and one view of it all.

    COHORT/batches/00001/                a run, as `medad screen --out` makes it, plus
    COHORT/batches/00001/_planned.json   which files of which content it screens; written once, first
    COHORT/batches/00001/_batch.json     what became of each; written last: the batch counts from this moment on
    COHORT/predictions.parquet           rows of the newest screening of every case, from all batches that count
    COHORT/ledger.json                   every case with all its screenings, and who waits

One decision: `_batch.json` is the only truth. Predictions and ledger are views of these files. They are replaced whole,
and made again whenever they are behind. So nothing that kills the process makes them disagree with what was screened
for longer than until the next command.
"""
