"""Incremental cohorts: which studies of an inbox are new or changed, which batch screened each, and all predictions.

    COHORT/batches/00001/                a run, as `medad screen --out` makes it, plus
    COHORT/batches/00001/_planned.json   its studies with files and contents; written once, first
    COHORT/batches/00001/_batch.json     the result of each study; written last: from then on the batch counts
    COHORT/predictions.parquet           rows of the newest screening of every case, from all batches that count
    COHORT/worklist.csv                  all screened cases, the most urgent first
    COHORT/followup.parquet, .csv        patients who were examined more than once, and followup_lesions.parquet
    COHORT/_view.json                    the batches and the hash of predictions.parquet, written after it
    COHORT/_lists.txt                    hashes of worklist and follow-up, and of what they were made of in every batch
    COHORT/ledger.json                   every case with all its screenings, and the waiting studies

One decision: only the `_batch.json` files are authoritative. Predictions, lists and ledger are derived from them. They
are replaced as a whole, and written again whenever they are out of date. So if a process is killed, the next command
makes them consistent again.
"""
