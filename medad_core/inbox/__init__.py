"""Incremental cohorts: which studies of an inbox are new or changed, in which batch each was screened, and one view over all of it.

    COHORT/batches/00001/            a run, as `medad screen --out` makes it, plus
    COHORT/batches/00001/_planned.json   which files of which content it screens; written once, first
    COHORT/batches/00001/_batch.json     what became of each; written last: the batch counts from this moment on
    COHORT/predictions.parquet       rows of the newest screening of every case, from all batches that count
    COHORT/ledger.json               every case with all its screenings, and who waits

One decision: `_batch.json` is the only truth. Predictions and ledger are views of these files, replaced whole and made again whenever they are found to be behind, so
nothing that kills the process can make them disagree with what was screened for longer than until the next command.
"""
