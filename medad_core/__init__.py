"""The product without an orchestrator. `README.md` beside this file has method and architecture; here are the words.

Data
    case         One examination of one patient, named by its case_id. Two visits of a patient are two cases.
    study        A case as it lies in an inbox: its files, where they lie and what they contain.
    volume       The 3-D image of one modality of a case.
    slice        One axial picture of a volume: upright, 8 bits a pixel, named by (case_id, slice_index).
    mask         The expert segmentation of a case, or of one slice of it. A case without one is unlabelled.

Work
    stage        One step of the whole path: slices, maps, prompts, answers. Each has a folder in RUN.
    part         The rows of some cases in one Parquet file of a stage. It is the unit of work and of resuming.
    range        The numbers of the parts that one task makes, one after the other, with its models loaded once.
    run          One pass of a cohort through the stages, in its folder RUN.

Cohorts
    cohort       The cases that are screened together. `RUN/cohort.json` settles who they are before the first stage.
                 An incremental cohort is the folder COHORT, which grows batch by batch.
    batch        A run of an incremental cohort. It counts from the moment that its commit is written.
                 (The images of one forward pass are a batch too, but only inside a function.)
    revision     The n-th content of a case in an incremental cohort, counted from 1.

What a stage writes about itself
    plan         Which cases are in which part, and the fingerprint. It is written once, first, and never made again.
    record       What became of one part: rows, sha256, who failed and why. A part without its record is rubbish.
    manifest     The sum over all parts, written last. A stage with a manifest is finished.
    fingerprint  What determines the rows of a stage: hashes of models and weights, scaling, prompts, the stage before.
                 It never says how rows are made (batch size, device, paths). Another fingerprint is another result.
    quarantine   The end of a part that cannot be made: its cases are recorded as failed, with the reason.
                 The rest of the run goes on.
"""
